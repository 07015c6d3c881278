"""Both splits are known to hold documents before a tokenizer is trained."""

import json

import pytest

from shared_tokenizer.preparation import prepare as prepare_module
from shared_tokenizer.preparation.prepare import prepare
from shared_tokenizer.preparation.prepare_config import PrepareConfig
from tests.conftest import TEXT, Silent


@pytest.fixture
def run(tmp_path, tokenizer):
    """Return a function that prepares a source, and returns the manifest and the lines."""
    (tmp_path / "tokenizer").mkdir()
    tokenizer.save(tmp_path / "tokenizer")

    def prepare_source(source, **options):
        reporter = Silent()
        tokenizer = None if "vocab_size" in options else str(tmp_path / "tokenizer")
        options = {"output_dir": str(tmp_path / "out"), "num_workers": 1, "tokenizer": tokenizer} | options
        return prepare(PrepareConfig(input=[str(source)], **options), reporter), reporter.lines

    return prepare_source


@pytest.fixture
def source(tmp_path):
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


@pytest.fixture
def no_training(monkeypatch):
    def refuse(*_):
        raise AssertionError("a tokenizer was trained")

    monkeypatch.setattr(prepare_module, "train_on_sample", refuse)


def write_rows(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def documents(manifest):
    return {split: counts["documents"] for split, counts in manifest["splits"].items()}


def test_one_book_is_cut_and_that_is_said(source, run):
    (source / "book.txt").write_text("".join(f"line {i} of a book\n" for i in range(5000)))
    manifest, lines = run(source)
    (line,) = [line for line in lines if "too few" in line]
    size = int(line.partition("--document_characters ")[2].removesuffix(")"))
    assert line.startswith("1 text is too few to hold one out: cut into pieces") and 500 < size <= 10_000
    assert documents(manifest)["val"] >= 1 and manifest["options"]["document_characters"] == size
    again, _ = run(source)
    assert again == manifest  # the same command keeps it


def test_too_few_documents_stop_before_a_tokenizer_is_trained(source, run, no_training):
    write_rows(source / "a.jsonl", ["one", "two"])
    with pytest.raises(
        ValueError, match=r"val split: found none of the 2 documents in it; .* larger val_fraction than"
    ):
        run(source, vocab_size=300)
    (source / "book.txt").write_text(TEXT * 500)
    with pytest.raises(ValueError, match="a smaller document_characters than 100000"):
        run(source / "book.txt", vocab_size=300, document_characters=100_000)
    write_rows(source / "a.jsonl", [str(i) for i in range(500)])
    with pytest.raises(ValueError, match="a larger max_samples than 2"):
        run(source / "a.jsonl", vocab_size=300, max_samples=2)
    assert not (source.parent / "out").exists()


def test_a_lost_rest_stops_before_a_tokenizer_is_trained_whatever_the_limit(source, run):
    (source / "a.csv").write_text(
        "id,text\n" + "".join(f"{i},row {i}\n" for i in range(400)).replace("\n50,", '\n50,"')
    )
    for options in ({"vocab_size": 300}, {}):
        with pytest.raises(ValueError, match=r"a\.csv:52: .*350 lines are lost .*max_bad_rows does not apply"):
            run(source, max_bad_rows=1000, **options)
    assert not (source.parent / "out").exists()


def test_files_of_validation_are_the_split_and_what_they_hold_is_not_trained_on(source, run):
    write_rows(source / "train.jsonl", [f"text {i}" for i in range(50)])
    write_rows(source / "valid.jsonl", [f"text {i}" for i in range(45, 60)])
    write_rows(source / "test.jsonl", [f"secret {i}" for i in range(9)])
    manifest, lines = run(source)
    assert documents(manifest) == {"train": 50, "val": 15}
    assert any("holds out valid.jsonl, leaves out test.jsonl" in line for line in lines)
    manifest, _ = run(source, dedup=True, output_dir=str(source.parent / "distinct"))
    assert documents(manifest) == {"train": 45, "val": 15}
    manifest, _ = run(source, splits="ignore", val_fraction=0.3, output_dir=str(source.parent / "all"))
    assert sum(documents(manifest).values()) == 50 + 15 + 9
    with pytest.raises(ValueError, match="holds another corpus: input_sha256"):
        run(source, splits="ignore")
    (source / "valid.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"val split: .* the files that are named after it hold no document"):
        run(source, output_dir=str(source.parent / "empty"))


def test_skipped_rows_are_named_at_the_end_with_three_places(source, run, monkeypatch):
    write_rows(source / "a.jsonl", [f"text {i}" for i in range(100)] + [None] * 5)
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "draw_lengths", lambda summary: exec("raise KeyboardInterrupt"))
        with pytest.raises(KeyboardInterrupt):
            run(source, max_bad_rows=5)
    _, lines = run(source, max_bad_rows=5)  # of slices that were finished before, too
    assert f"{source.parent / 'out'}: resuming an interrupted preparation" in lines
    at = lines.index("skipped 5 rows that cannot be read, the first:")
    assert [line.split(": ")[0] for line in lines[at + 1 : at + 4]] == [
        f"  {source}/a.jsonl:{n}" for n in (101, 102, 103)
    ]


def test_every_kind_of_a_folder_is_shown(source, run):
    write_rows(source / "a.jsonl", [f"text {i}" for i in range(100)])
    write_rows(source / "b.jsonl", ["more"])
    (source / "c.csv").write_text("id,content\n1,cell\n")
    (source / "d.txt").write_text("story")
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    (source / "e.json").write_text(json.dumps([{"messages": chat}]))
    _, lines = run(source)
    assert f"{source}/a.jsonl (and 1 more such files): reading text" in lines
    content = "c.csv: reading content; columns not used: id"
    for line in (content, "d.txt: reading text", "e.json: reading messages as chats"):
        assert f"{source}/{line}" in lines
    assert {"  text 0", "  cell", "  story", "  q | a"} <= set(lines)
    assert "a mixture: 1 files hold chats, 4 hold texts" in lines
