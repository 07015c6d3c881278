import json
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_tokenizer.chat.formats import CHATML, named_chat_format
from shared_tokenizer.chat.messages import encode_chat
from shared_tokenizer.chat.template import read_chat_format, write_chat_template
from shared_tokenizer.data.shards import TokenShards, read_manifest
from shared_tokenizer.load import load_tokenizer
from shared_tokenizer.manifest import DamagedError, verify_manifest
from shared_tokenizer.preparation import prepare_slice
from shared_tokenizer.preparation.prepare import prepare
from shared_tokenizer.preparation.prepare_config import PrepareConfig
from shared_tokenizer.preparation.prepare_slice import find_duplicates
from shared_tokenizer.sources import slices
from shared_tokenizer.sources.documents import Document, is_validation, read_documents
from tests.conftest import Silent

OTHERS = [f"another {i}" for i in range(10)]
CHAT = [{"role": "user", "content": "add 1 and 2"}, {"role": "assistant", "content": "return 3"}]


@pytest.fixture(autouse=True)
def small_slices(monkeypatch):
    monkeypatch.setattr(slices, "SMALLEST_SLICE_BYTES", 500)


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory, tokenizer):
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(path)
    return path


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def texts_of(shards_dir, split, tokenizer):
    shards = TokenShards.open(shards_dir, split)
    starts = [0, *shards.document_ends[:-1]]
    spans = [shards.read(start, end - start) for start, end in zip(starts, shards.document_ends, strict=True)]
    return [tokenizer.decode(span.ids) for span in spans]


def run(source, output, tokenizer_dir, **options):
    """Prepare, and return the manifest plus all logged lines; `is_new` tells that a slice was prepared."""
    options = {"val_fraction": 0.3, "num_workers": 1, "tokenizer": str(tokenizer_dir)} | options
    if options.get("vocab_size"):
        options["tokenizer"] = None
    reporter = Silent()
    manifest = prepare(PrepareConfig(input=[str(source)], output_dir=str(output), **options), reporter)
    verify_manifest(Path(output))
    return manifest | {"lines": reporter.lines, "is_new": reporter.has_progress}


def content(directory):
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1), min_size=8)
)
@settings(max_examples=25)
def test_every_document_is_there_once_whole_and_in_order(tmp_path_factory, tokenizer, tokenizer_dir, texts):
    folder = tmp_path_factory.mktemp("run")
    source = write_rows(folder / "a.jsonl", [{"text": text} for text in texts])
    held_out = [is_validation(Document("", text), 0.3) for text in texts]
    if all(held_out) or not any(held_out):
        return
    manifest = run(source, folder / "out", tokenizer_dir, shard_tokens=40, text_format="letters")
    for split in ("train", "val"):
        expected = [text for text, held in zip(texts, held_out, strict=True) if held == (split == "val")]
        assert texts_of(folder / "out", split, tokenizer) == expected
        counts = manifest["splits"][split]
        assert counts["documents"] == len(expected)
        assert counts["bytes"] == sum(len(text.encode()) for text in expected)
        assert counts["tokens"] == sum(shard["tokens"] for shard in counts["shards"])


@pytest.fixture
def texts(tmp_path):
    write_rows(tmp_path / "in.jsonl", [{"text": f"text {i % 80} " * (i % 9 + 1)} for i in range(120)])
    return tmp_path / "in.jsonl"


def test_the_result_is_the_same_to_the_byte_whoever_did_the_work(texts, tmp_path, tokenizer_dir):
    run(texts, tmp_path / "one", tokenizer_dir, dedup=True)
    run(texts, tmp_path / "many", tokenizer_dir, dedup=True, num_workers=2)
    assert content(tmp_path / "one") == content(tmp_path / "many")
    assert not list(tmp_path.glob("*.partial"))
    assert len(list((tmp_path / "one").glob("train-*.npy"))) > 10


def test_limits_stop_at_a_document_and_leave_the_beginning(texts, tmp_path, tokenizer, tokenizer_dir):
    everything = [document.text for document in read_documents([str(texts)])]
    for limit in (1, 17, 33):
        output = tmp_path / f"samples-{limit}"
        options = {"val_fraction": 0.3}
        held = {text: is_validation(Document("", text), 0.3) for text in everything[:limit]}
        if len(set(held.values())) < 2:
            with pytest.raises(ValueError, match="found none of the"):
                run(texts, output, tokenizer_dir, max_samples=limit, **options)
            assert not output.exists() and not output.with_name(f"{output.name}.partial").exists()
            continue
        run(texts, output, tokenizer_dir, max_samples=limit)
        found = texts_of(output, "train", tokenizer) + texts_of(output, "val", tokenizer)
        assert sorted(found) == sorted(everything[:limit])
    manifest = run(texts, tmp_path / "tokens", tokenizer_dir, max_tokens=1000)
    total = sum(split["tokens"] for split in manifest["splits"].values())
    assert 900 < total <= 1000
    named = {shard["name"] for split in manifest["splits"].values() for shard in split["shards"]}
    on_disk = {path.name.split(".")[0] for path in (tmp_path / "tokens").glob("*-*.npy")}
    assert on_disk == named  # nothing of the slices that were not wanted is left


def test_duplicates_and_short_documents_are_left_out_and_counted(texts, tmp_path, tokenizer, tokenizer_dir):
    write_rows(texts, [{"text": text} for text in ["a", "long one", "b", "long one", *OTHERS, "long one", *"xyz"] * 9])
    run(texts, tmp_path / "out", tokenizer_dir, dedup=True, min_text_length=2, val_fraction=0.5)
    statistics = json.loads((tmp_path / "out" / "stats.json").read_text())
    assert statistics["documents"] == 1 + len(OTHERS)
    assert statistics["left_out"] == {"bad_rows": 0, "empty": 0, "short": 45, "duplicates": 26 + 8 * len(OTHERS)}
    found = texts_of(tmp_path / "out", "train", tokenizer) + texts_of(tmp_path / "out", "val", tokenizer)
    assert sorted(found) == sorted(["long one", *OTHERS])


def test_duplicates_are_found_across_slices():
    first, second = (
        np.frombuffer(b"".join(each.ljust(16) for each in part), "V16") for part in ([b"a", b"b", b"a"], [b"b", b"c"])
    )
    none, all_of_it = np.zeros(3, bool), np.ones(2, bool)
    assert find_duplicates([first, second], [none, none[:2]]) == [frozenset({2}), frozenset({0})]
    # A copy of what is held out is not trained on, though it comes first.
    assert find_duplicates([first, second], [none, all_of_it]) == [frozenset({1, 2}), frozenset()]


def test_chats_are_rendered_with_their_mask_and_carry_their_template(tmp_path, tokenizer, tokenizer_dir):
    rows = [{"messages": [CHAT[0] | {"content": f"add {i}"}, CHAT[1]]} for i in range(20)]
    manifest = run(write_rows(tmp_path / "a.jsonl", rows), tmp_path / "out", tokenizer_dir)
    assert manifest["masked"] and manifest["chat_format"] == "chatml"
    shards = TokenShards.open(tmp_path / "out", "train")
    first = next(
        document for document in read_documents([str(tmp_path / "a.jsonl")]) if not is_validation(document, 0.3)
    )
    chat = encode_chat(first.content, tokenizer, CHATML)
    span = shards.read(0, int(shards.document_ends[0]))
    assert (span.ids.tolist(), span.loss_mask.tolist()) == (chat.ids, chat.loss_mask)
    assert read_chat_format(tmp_path / "out" / "tokenizer").name == "chatml"
    assert load_tokenizer(tmp_path / "out" / "tokenizer").fingerprint == tokenizer.fingerprint
    assert any("add 0 | return 3" in line for line in manifest["lines"])


def test_chats_that_the_format_cannot_express_are_bad_rows(tmp_path, tokenizer_dir):
    rows = [
        {"messages": CHAT},
        {"messages": CHAT[1:]},
        *({"messages": [CHAT[0], CHAT[1] | {"content": str(i)}]} for i in range(20)),
    ]
    source = write_rows(tmp_path / "a.jsonl", rows)
    with pytest.raises(ValueError, match=r"a\.jsonl:2: chat format mistral: .*bad rows: 1, max_bad_rows: 0"):
        run(source, tmp_path / "out", tokenizer_dir, chat_format="mistral")
    run(source, tmp_path / "out", tokenizer_dir, chat_format="mistral", max_bad_rows=1)
    assert json.loads((tmp_path / "out" / "stats.json").read_text())["conversations"] == 21
    with pytest.raises(ValueError, match=r"chat format llama-3: found no special token '<\|start_header_id\|>'"):
        run(source, tmp_path / "other", tokenizer_dir, chat_format="llama-3")
    assert not (tmp_path / "other").exists()


UNKNOWN_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '@' + m.role + '\n' + m.content | trim + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '@assistant\n' }}{% endif %}"
)


@pytest.fixture
def with_template(tmp_path, tokenizer):
    (tmp_path / "own").mkdir()
    tokenizer.save(tmp_path / "own")
    (tmp_path / "own" / "chat_template.jinja").write_text(UNKNOWN_TEMPLATE)
    return tmp_path / "own"


def test_chats_are_written_as_an_unknown_template_writes_them(tmp_path, tokenizer, with_template):
    rows = [{"messages": [CHAT[0] | {"content": f"add {i}"}, CHAT[1]]} for i in range(20)]
    source = write_rows(tmp_path / "a.jsonl", rows)
    manifest = run(source, tmp_path / "out", with_template)
    assert manifest["masked"] and manifest["chat_format"] == "template"
    assert any("own chat template writes them" in line for line in manifest["lines"])
    shards = TokenShards.open(tmp_path / "out", "train")
    span = shards.read(0, int(shards.document_ends[0]))
    text, learned = tokenizer.decode(span.ids), span.ids[span.loss_mask]
    assert text.startswith("@user\nadd ") and text.endswith("\n@assistant\nreturn 3\n")
    assert learned.tolist() == [*tokenizer.encode("return 3"), tokenizer.eos_id]
    assert (tmp_path / "out" / "tokenizer" / "chat_template.jinja").read_text() == UNKNOWN_TEMPLATE
    assert not run(source, tmp_path / "out", with_template)["is_new"]
    (with_template / "chat_template.jinja").write_text(UNKNOWN_TEMPLATE.replace("@", "#"))
    with pytest.raises(ValueError, match="holds another corpus: chat_template_sha256 was"):
        run(source, tmp_path / "out", with_template)


def test_chats_that_an_unknown_template_changes_are_bad_rows(tmp_path, with_template):
    rows = [{"messages": [CHAT[0], CHAT[1] | {"content": f"{i}"}]} for i in range(20)]
    source = write_rows(tmp_path / "a.jsonl", [*rows, {"messages": [CHAT[0], CHAT[1] | {"content": "3\n"}]}])
    message = (
        r"a\.jsonl:21: chat template: it removes the whitespace around messages\[1\], of the assistant.*bad rows: 1"
    )
    with pytest.raises(ValueError, match=message):
        run(source, tmp_path / "out", with_template)
    run(source, tmp_path / "out", with_template, max_bad_rows=1)
    assert json.loads((tmp_path / "out" / "stats.json").read_text())["conversations"] == 20


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{{ 10 ** 100000000 }}",
            "chat template: it ran for 0.5 s and had not ended, expected a text within these limits",
        ),
        ("{{ messages[0].content }}", r"chat template: it leaves out messages\[1\], of the assistant"),
        (UNKNOWN_TEMPLATE.replace("eos_token", "'.'"), r"chat template: found no special token after messages\[1\]"),
    ],
)
def test_a_template_that_cannot_be_learned_from_stops_a_preparation(tmp_path, with_template, template, message):
    (with_template / "chat_template.jinja").write_text(template)
    source = write_rows(
        tmp_path / "a.jsonl", [{"messages": [CHAT[0], CHAT[1] | {"content": f"{i}"}]} for i in range(20)]
    )
    with pytest.raises(ValueError, match=message):
        run(source, tmp_path / "out", with_template)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()
    run(source, tmp_path / "out", with_template, chat_format="chatml")


def test_bad_rows_stop_the_work_or_are_counted(tmp_path, tokenizer_dir):
    good = [{"text": f"good {i}"} for i in range(40)]
    source = write_rows(tmp_path / "a.jsonl", [*good, {"text": None}, *good, {"other": 1}, {"text": "x\0"}])
    with pytest.raises(ValueError, match=r"a\.jsonl:41: column 'text': found a NoneType.*max_bad_rows: 0"):
        run(source, tmp_path / "out", tokenizer_dir)
    with pytest.raises(ValueError, match="found no manifest"):
        read_manifest(tmp_path / "out")
    with pytest.raises(ValueError, match=r"a\.jsonl:41: .*bad rows: 3, max_bad_rows: 2"):
        run(source, tmp_path / "out", tokenizer_dir, max_bad_rows=2)
    run(source, tmp_path / "out", tokenizer_dir, max_bad_rows=3)
    statistics = json.loads((tmp_path / "out" / "stats.json").read_text())
    assert statistics["left_out"]["bad_rows"] == 3 and statistics["documents"] == 80
    assert [line.split(": ")[0] for line in statistics["first_bad_rows"]] == [f"{source}:{n}" for n in (41, 82, 83)]


def test_an_interrupted_preparation_goes_on_and_does_no_slice_twice(texts, tmp_path, tokenizer_dir, monkeypatch):
    run(texts, tmp_path / "straight", tokenizer_dir)
    real_run, done = prepare_slice._SliceWork.run, []

    def interrupted(self):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(self._job.slice.index)
        return real_run(self)

    monkeypatch.setattr(prepare_slice._SliceWork, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(texts, tmp_path / "out", tokenizer_dir)
    monkeypatch.setattr(
        prepare_slice._SliceWork, "run", lambda self: done.append(self._job.slice.index) or real_run(self)
    )
    manifest = run(texts, tmp_path / "out", tokenizer_dir)
    assert any("resuming an interrupted preparation" in line for line in manifest["lines"])
    assert done == list(range(len(done)))
    assert content(tmp_path / "out") == content(tmp_path / "straight")


@pytest.fixture
def interrupted(texts, tmp_path, tokenizer_dir, monkeypatch):
    """A preparation whose slices are all finished, and nothing else."""
    with monkeypatch.context() as patch:
        patch.setattr(
            "shared_tokenizer.preparation.prepare.draw_lengths", lambda summary: exec("raise KeyboardInterrupt")
        )
        with pytest.raises(KeyboardInterrupt):
            run(texts, tmp_path / "out", tokenizer_dir)
    return tmp_path / "out"


def test_an_interrupted_preparation_of_something_else_is_refused(interrupted, texts, tokenizer_dir):
    before = content(interrupted) | content(interrupted.with_name("out.partial"))
    with pytest.raises(ValueError, match=r"val_fraction was 0\.3 and is now 0\.5; remove it and its \.partial or"):
        run(texts, interrupted, tokenizer_dir, val_fraction=0.5)
    assert content(interrupted) | content(interrupted.with_name("out.partial")) == before


def test_a_slice_that_was_damaged_meanwhile_is_done_again(interrupted, texts, tmp_path, tokenizer_dir):
    run(texts, tmp_path / "straight", tokenizer_dir)
    journal = interrupted.with_name("out.partial")
    shards, summaries = sorted(interrupted.glob("train-*-00.npy")), sorted(journal.glob("slice-*.json"))
    shards[0].unlink()
    shards[1].write_bytes(shards[1].read_bytes()[:-1] + b"x")
    for number, damaged in ((2, b""), (3, b'{"counts": {}}'), (4, b"[1]")):
        summaries[number].write_bytes(damaged)
    run(texts, interrupted, tokenizer_dir)
    assert content(interrupted) == content(tmp_path / "straight")


def test_a_damaged_plan_or_tokenizer_is_said(texts, tmp_path, tokenizer_dir, monkeypatch):
    options = {"vocab_size": 295}
    with monkeypatch.context() as patch:
        patch.setattr(
            "shared_tokenizer.preparation.prepare.draw_lengths", lambda summary: exec("raise KeyboardInterrupt")
        )
        with pytest.raises(KeyboardInterrupt):
            run(texts, tmp_path / "out", tokenizer_dir, **options)
    (tmp_path / "out" / "tokenizer" / "tokenizer.model").write_bytes(b"")
    with pytest.raises(ValueError, match=r"out/tokenizer: damaged, so the preparation cannot resume; remove"):
        run(texts, tmp_path / "out", tokenizer_dir, **options)
    (tmp_path / "out.partial" / "plan.json").write_text("{")
    with pytest.raises(ValueError, match=r"plan\.json: damaged, so the preparation cannot resume; remove"):
        run(texts, tmp_path / "out", tokenizer_dir, **options)


def test_what_is_not_ours_is_never_removed(texts, tmp_path, tokenizer_dir):
    for name in ("out", "out.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("precious")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"out: already exists and is not empty"):
            run(texts, tmp_path / "out", tokenizer_dir)
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(ValueError, match=r"out\.partial: already exists and is not empty"):
        run(texts, tmp_path / "out", tokenizer_dir)
    assert (tmp_path / "out.partial" / "thesis.txt").read_text() == "precious"
    assert not (tmp_path / "out").exists()


def test_a_second_preparation_of_the_same_place_is_refused(texts, tmp_path, tokenizer_dir, monkeypatch):
    def second(summary):
        with pytest.raises(ValueError, match="out: another process is preparing it; wait for it to end"):
            run(texts, tmp_path / "out", tokenizer_dir)
        return b""

    monkeypatch.setattr("shared_tokenizer.preparation.prepare.draw_lengths", second)
    run(texts, tmp_path / "out", tokenizer_dir)
    assert not (tmp_path / "out.partial").exists()


def test_a_refused_preparation_leaves_the_lock_of_the_first(texts, tmp_path, tokenizer_dir, monkeypatch):
    from shared_tokenizer.preparation.choose_tokenizer import train_on_sample

    begun = []

    def second(*arguments):
        if not begun:
            begun.append(1)
            with pytest.raises(ValueError, match="out: another process is preparing it"):
                run(texts, tmp_path / "out", tokenizer_dir, vocab_size=295)
            assert (tmp_path / "out.partial" / "lock").exists()
        return train_on_sample(*arguments)

    monkeypatch.setattr("shared_tokenizer.preparation.prepare.train_on_sample", second)
    run(texts, tmp_path / "out", tokenizer_dir, vocab_size=295)
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("place", ["begin", "_write_tokenizer", "write_plan", "remove_journal", "seal"])
@pytest.mark.parametrize("late", [False, True])
def test_an_end_at_any_place_is_repaired_by_the_same_command(texts, tmp_path, tokenizer_dir, monkeypatch, place, late):
    from shared_tokenizer.preparation.output import PreparationOutput
    from shared_tokenizer.preparation.prepare import _Preparation

    options = {"vocab_size": 295}
    run(texts, tmp_path / "straight", tokenizer_dir, **options)
    owner = _Preparation if place == "_write_tokenizer" else PreparationOutput
    real = getattr(owner, place)

    def ends(self, *arguments):
        if late:
            real(self, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(owner, place, ends)
        with pytest.raises(KeyboardInterrupt):
            run(texts, tmp_path / "out", tokenizer_dir, **options)
    run(texts, tmp_path / "out", tokenizer_dir, **options)
    assert content(tmp_path / "out") == content(tmp_path / "straight")
    assert not (tmp_path / "out.partial").exists()


def test_a_manifest_that_a_full_disk_cut_is_written_again(interrupted, texts, tmp_path, tokenizer_dir):
    run(texts, tmp_path / "straight", tokenizer_dir)
    (interrupted / "manifest.json").write_bytes(b"")
    run(texts, interrupted, tokenizer_dir)
    assert content(interrupted) == content(tmp_path / "straight")


def test_an_error_after_the_seal_takes_nothing_away(texts, tmp_path, tokenizer_dir, monkeypatch):
    from shared_tokenizer.preparation.output import PreparationOutput

    def full(self):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(PreparationOutput, "remove_journal", full)
        with pytest.raises(OSError, match="No space left"):
            run(texts, tmp_path / "out", tokenizer_dir)
    before = content(tmp_path / "out")
    verify_manifest(tmp_path / "out")
    run(texts, tmp_path / "out", tokenizer_dir)
    assert content(tmp_path / "out") == before
    assert not (tmp_path / "out.partial").exists()


def test_a_sealed_set_stays_where_only_the_plan_of_its_journal_is_left(texts, tmp_path, tokenizer_dir, monkeypatch):
    from shared_tokenizer.preparation.output import PreparationOutput
    from shared_tokenizer.preparation.output_files import PLAN

    def all_but_the_plan(self):
        for summary in self.filesystem.glob(f"{self.journal}/slice-*.json"):
            self.filesystem.rm_file(summary)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PreparationOutput, "remove_journal", all_but_the_plan)
        with pytest.raises(KeyboardInterrupt):
            run(texts, tmp_path / "out", tokenizer_dir)
    before = content(tmp_path / "out")
    assert (tmp_path / "out.partial" / PLAN).exists()
    with pytest.raises(ValueError, match=r"val_fraction was 0\.3 and is now 0\.5"):
        run(texts, tmp_path / "out", tokenizer_dir, val_fraction=0.5)
    assert content(tmp_path / "out") == before
    verify_manifest(tmp_path / "out")
    monkeypatch.setattr("shared_tokenizer.preparation.prepare.run_slices", None)  # nothing is done again
    run(texts, tmp_path / "out", tokenizer_dir)
    assert content(tmp_path / "out") == before
    assert not (tmp_path / "out.partial").exists()


def test_no_preparation_works_without_its_lock(texts, tmp_path, tokenizer_dir, monkeypatch):
    def gone(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr("shared_tokenizer.preparation.output.locked_file", gone)
    with pytest.raises(ValueError, match="out: other processes are preparing it"):
        run(texts, tmp_path / "out", tokenizer_dir)


def test_a_plan_that_was_not_completed_is_nobodys(texts, tmp_path, tokenizer_dir):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "plan.json.tmp").write_text("{")
    run(texts, tmp_path / "out", tokenizer_dir)
    assert not (tmp_path / "out.partial").exists()


def test_a_wrong_number_in_a_summary_is_noticed(interrupted, texts, tmp_path, tokenizer_dir):
    run(texts, tmp_path / "straight", tokenizer_dir)
    summary = sorted(interrupted.with_name("out.partial").glob("slice-*.json"))[0]
    content_before = summary.read_text()
    changed = content_before.replace('\\"bytes\\": ', '\\"bytes\\": 1')
    assert changed != content_before
    summary.write_text(changed)
    run(texts, interrupted, tokenizer_dir)
    assert content(interrupted) == content(tmp_path / "straight")


def test_a_full_disk_names_the_file(texts, tmp_path, tokenizer_dir, monkeypatch):
    def full(self, path, value, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.pipe_file", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*out\.partial/plan\.json'"):
        run(texts, tmp_path / "out", tokenizer_dir)


def test_a_finished_set_is_kept_and_another_refused(texts, tmp_path, tokenizer_dir):
    run(texts, tmp_path / "out", tokenizer_dir)
    before = content(tmp_path / "out")
    moved = shutil.copy(texts, tmp_path / "in2.jsonl")
    assert run(texts, tmp_path / "out", tokenizer_dir)["is_new"] is False
    with pytest.raises(ValueError, match=r"holds another corpus: input_sha256 was .* and is now"):
        run(moved, tmp_path / "out", tokenizer_dir)
    with pytest.raises(ValueError, match=r"holds another corpus: dedup was False and is now True"):
        run(texts, tmp_path / "out", tokenizer_dir, dedup=True)
    with pytest.raises(ValueError, match=r"holds another corpus: tokenizer was .* and is now None"):
        run(texts, tmp_path / "out", tokenizer_dir, vocab_size=300)
    assert content(tmp_path / "out") == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("keep me")
    with pytest.raises(ValueError, match="full: already exists and is not empty"):
        run(texts, tmp_path / "full", tokenizer_dir)
    assert (tmp_path / "full" / "mine").read_text() == "keep me"


def test_a_damaged_set_is_not_kept(texts, tmp_path, tokenizer_dir):
    run(texts, tmp_path / "out", tokenizer_dir)
    (tmp_path / "out" / "stats.json").write_text("{}")
    with pytest.raises(DamagedError, match=r"stats\.json: damaged"):
        run(texts, tmp_path / "out", tokenizer_dir)


def test_nothing_is_prepared_inside_a_sealed_directory(texts, tmp_path, tokenizer_dir):
    run(texts, tmp_path / "out", tokenizer_dir)
    with pytest.raises(ValueError, match=r"inner: lies inside .*out, which is sealed"):
        run(texts, tmp_path / "out" / "inner", tokenizer_dir)
    assert not (tmp_path / "out" / "inner.partial").exists()


def test_the_output_may_lie_inside_the_input_and_is_not_read(texts, tmp_path, tokenizer_dir):
    first = run(texts.parent, tmp_path / "out", tokenizer_dir)
    again = run(texts.parent, tmp_path / "out", tokenizer_dir)
    assert first["options"] == again["options"] and again["is_new"] is False


def test_shards_may_be_written_to_any_filesystem(texts, tmp_path, tokenizer_dir):
    run(texts, tmp_path / "local", tokenizer_dir)
    config = PrepareConfig(
        input=[str(texts)], output_dir="memory://sets/a", tokenizer=str(tokenizer_dir), val_fraction=0.3, num_workers=1
    )
    prepare(config, Silent())
    filesystem = fsspec.filesystem("memory")
    local = content(tmp_path / "local")
    found = {Path(path).relative_to("/sets/a") for path in filesystem.find("/sets/a")}
    assert found == set(local) and Path("MANIFEST.sha256") in found
    assert all(filesystem.cat_file(f"/sets/a/{name}") == expected for name, expected in local.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 300}, "tokenizer, vocab_size: expected one of the two"),
        ({"hub": "x"}, "input, hub: expected one of the two"),
        ({"input": [], "hub": ""}, "input, hub: expected one of the two"),
        ({"chat_format": "chatgpt"}, "chat format: found 'chatgpt', expected one of chatml"),
        ({"val_fraction": 0.0}, "val_fraction: found 0.0"),
        ({"max_tokens": 0}, "max_tokens: found 0, expected at least 1"),
        ({"max_bad_rows": -1}, "max_bad_rows: found -1, expected 0 or more"),
        ({"special_tokens": ["<a>"]}, "special_tokens: has no effect"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PrepareConfig(**{"input": ["a"], "output_dir": "b", "tokenizer": "c"} | options)


def test_a_trained_tokenizer_needs_text(tmp_path, tokenizer_dir):
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(ValueError, match=r"empty\.txt: found no text to train a tokenizer on"):
        run(tmp_path / "empty.txt", tmp_path / "out", tokenizer_dir, vocab_size=300)
    with pytest.raises(ValueError, match=r"empty\.txt: found no text; left out: nothing"):
        run(tmp_path / "empty.txt", tmp_path / "out", tokenizer_dir)
    assert [path.name for path in tmp_path.iterdir()] == ["empty.txt"]


@pytest.mark.parametrize("inner", ["", "tokenizer", "artifact", "data/tokenizer"])
def test_the_tokenizer_of_a_run_a_model_or_shards_is_found(texts, tmp_path, tokenizer, inner):
    (tmp_path / "given" / inner).mkdir(parents=True)
    tokenizer.save(tmp_path / "given" / inner)
    write_chat_template(tmp_path / "given" / inner, named_chat_format("alpaca"), tokenizer)
    chats = write_rows(
        tmp_path / "chats.jsonl", [{"messages": [*CHAT, CHAT[0], CHAT[1] | {"content": x}]} for x in OTHERS]
    )
    found = run(chats, tmp_path / "out", tmp_path / "given")
    assert found["tokenizer_fingerprint"] == tokenizer.fingerprint and found["chat_format"] == "alpaca"
    assert (f"tokenizer: {tmp_path / 'given' / inner}" in found["lines"]) == bool(inner)


def test_chats_of_another_known_template_are_another_corpus(tmp_path, with_template):
    source = write_rows(
        tmp_path / "a.jsonl", [{"messages": [CHAT[0] | {"content": f"add {i}"}, CHAT[1]]} for i in range(20)]
    )
    (with_template / "chat_template.jinja").write_text(CHATML.template)
    assert run(source, tmp_path / "out", with_template)["chat_format"] == "chatml"
    assert not run(source, tmp_path / "out", with_template)["is_new"]
    (with_template / "chat_template.jinja").write_text(named_chat_format("zephyr").template)
    with pytest.raises(ValueError, match="holds another corpus: chat_template was 'chatml' and is now 'zephyr'"):
        run(source, tmp_path / "out", with_template)


def test_a_refusal_takes_no_file_that_stands_in_place_of_an_interrupted_set(texts, tmp_path, tokenizer_dir):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "plan.json").write_text('{"identity": {}, "tokenizer_fingerprint": ""}')
    for name in ("stats.json", "tokenizer/tokenizer.json"):
        path = tmp_path / "out" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("precious")
    before = content(tmp_path / "out") | content(tmp_path / "out.partial")
    with pytest.raises(ValueError, match="out: holds another corpus"):
        run(texts, tmp_path / "out", tokenizer_dir)
    (tmp_path / "out.partial" / "lock").unlink()
    assert content(tmp_path / "out") | content(tmp_path / "out.partial") == before


def test_no_row_after_the_last_wanted_document_of_a_slice_counts(tmp_path, tokenizer_dir, monkeypatch):
    monkeypatch.setattr(slices, "SMALLEST_SLICE_BYTES", 1 << 20)
    source = write_rows(tmp_path / "a.jsonl", [{"text": f"document {i}"} for i in range(60)])
    with source.open("a") as file:
        file.write("{broken\n")
    assert run(source, tmp_path / "out", tokenizer_dir, max_samples=50)["splits"]["train"]["documents"] < 50
    with pytest.raises(ValueError, match="not JSON"):
        run(source, tmp_path / "all", tokenizer_dir)


@pytest.mark.parametrize("model", ["bpe", "words", "bytes"])
def test_text_that_a_tokenizer_does_not_know_is_said(tmp_path, model):
    english, other = tmp_path / "english", tmp_path / "other"
    for folder, line in ((english, "to be or not to be {}"), (other, "быть или не быть {}")):
        folder.mkdir()
        for i in range(20):
            (folder / f"{i}.txt").write_text("\n".join([line.format(i)] * 20))
    special = ["[UNK]", "<|endoftext|>"]
    if model == "words":
        library = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token="[UNK]"))
        library.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        trainer = tokenizers.trainers.WordLevelTrainer(special_tokens=special)
    else:
        parts = {"bpe": tokenizers.pre_tokenizers.Metaspace(), "bytes": tokenizers.pre_tokenizers.ByteLevel()}
        library = tokenizers.Tokenizer(tokenizers.models.BPE())
        library.pre_tokenizer = parts[model]
        library.decoder = tokenizers.decoders.Metaspace() if model == "bpe" else tokenizers.decoders.ByteLevel()
        alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet() if model == "bytes" else []
        trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    library.train_from_iterator([path.read_text() for path in english.iterdir()], trainer)
    library.save(str(tmp_path / "tokenizer.json"))
    lines = {
        folder.name: [
            line
            for line in run(folder, tmp_path / f"out-{folder.name}", tmp_path / "tokenizer.json")["lines"]
            if "does not know all of this text" in line
        ]
        for folder in (english, other)
    }
    assert lines["english"] == []
    assert len(lines["other"]) == (0 if model == "bytes" else 1)
