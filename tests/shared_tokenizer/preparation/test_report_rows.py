"""Rendered texts, unused columns and mixtures, from rows to shards."""

import json

import pytest

from shared_tokenizer.data.shards import TokenShards
from shared_tokenizer.load import load_tokenizer
from shared_tokenizer.manifest import verify_manifest
from shared_tokenizer.preparation import report_rows
from shared_tokenizer.preparation.prepare import prepare
from shared_tokenizer.preparation.prepare_config import PrepareConfig
from tests.conftest import Silent

WORDS = ["harbour", "kettle", "orchard", "bicycle", "letter", "radio", "market", "window", "stone", "train"]
ROWS = [(f"What of the {a} and the {b}?", f"The {b} needs the {a}.") for a in WORDS for b in WORDS[:4]]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def run(source, tmp_path, name="out", **options):
    """Prepare. Return the manifest, the lines that were logged, and every document as text with what is learned."""
    options = {"vocab_size": 330, "num_workers": 1, "val_fraction": 0.2} | options
    reporter, output = Silent(), tmp_path / name
    manifest = prepare(PrepareConfig(input=[source], output_dir=str(output), **options), reporter)
    verify_manifest(output)
    return manifest, reporter.lines, documents(output)


def documents(output):
    """Yield each document of a set: its ids as text, with special tokens spelled and what is learned in braces."""
    tokenizer = load_tokenizer(output / "tokenizer")
    spelled = {number: text.encode() for text, number in tokenizer.special_tokens.items()}
    found = []
    for split in ("train", "val"):
        shards, start = TokenShards.open(output, split), 0
        for end in shards.document_ends:
            span = shards.read(start, end - start)
            start, text, before = end, b"", False
            for token, learned in zip([*span.ids.tolist(), None], [*span.loss_mask.tolist(), False], strict=True):
                text += b"{" * (learned and not before) + b"}" * (before and not learned)
                text += b"" if token is None else spelled.get(token, tokenizer.pieces[token])
                before = learned
            found.append(text.decode())
    return found


@pytest.fixture
def rendered(tmp_path):
    return write(tmp_path / "in.jsonl", [{"text": f"<s>[INST] {ask} [/INST]{reply}</s>"} for ask, reply in ROWS])


def test_rendered_rows_stop_before_anything_is_made(rendered, tmp_path):
    message = r"40 of 40 texts spell special tokens: .*<s> \(40\).*--text_format rendered.*--text_format letters"
    with pytest.raises(ValueError, match=message):
        run(rendered, tmp_path)
    assert not list(tmp_path.glob("out*"))


def test_rendered_rows_are_chats_of_their_own_form(rendered, tmp_path):
    manifest, _, found = run(rendered, tmp_path, text_format="rendered")
    assert manifest["chat_format"] == "llama-2"
    assert sorted(found) == sorted(f"<s>[INST] {ask} [/INST]{{ {reply} <|endoftext|>}}" for ask, reply in ROWS)
    named, _, found = run(rendered, tmp_path, "chatml", text_format="rendered", chat_format="chatml")
    assert named["chat_format"] == "chatml"
    assert all(text.count("<s>") == 1 and "[INST]" not in text for text in found)


def test_rendered_rows_are_letters_where_that_is_chosen(rendered, tmp_path):
    manifest, lines, found = run(rendered, tmp_path, text_format="letters")
    assert not manifest["masked"]
    assert any("40 of 40 texts spell special tokens" in line and "learned as letters" in line for line in lines)
    assert all(text.startswith("{<s><s>[INST] ") and text.endswith("</s><|endoftext|>}") for text in found)
    tokens = TokenShards.open(tmp_path / "out", "train")
    assert (tokens.read(0, len(tokens)).ids == 1).sum() == manifest["splits"]["train"]["documents"]
    statistics = json.loads((tmp_path / "out" / "stats.json").read_text())
    assert statistics["spelled_out"]["texts"]["[INST]"] == 40


def test_few_rows_that_spell_special_tokens_are_counted(tmp_path):
    rows = [{"text": f"{ask} {reply} {i}"} for i in range(10) for ask, reply in ROWS]
    rows[7]["text"] += " <s>struck</s> <|im_end|>"
    _, lines, _ = run(write(tmp_path / "in.jsonl", rows), tmp_path)
    (line,) = [line for line in lines if "spell special" in line]
    assert line.startswith("1 of 400 texts spell special tokens: ")
    assert "<s> (1)" in line and "<|im_end|> (1)" in line and "--text_format rendered" in line


@pytest.mark.parametrize("choice", ["letters", "rendered"])
def test_rendered_rows_after_the_first_ones_stop_at_the_end_and_either_choice_goes_on(tmp_path, choice, monkeypatch):
    monkeypatch.setattr(report_rows, "SAMPLE", 100)
    rows = [{"text": f"{ask} {reply} {i}"} for i in range(4) for ask, reply in ROWS]
    rows += [{"text": f"<s>{ask}<file_sep>{reply}<|endoftext|>"} for ask, reply in ROWS]
    source = write(tmp_path / "in.jsonl", rows)
    with pytest.raises(ValueError, match="40 of 200 texts spell special tokens"):
        run(source, tmp_path)
    assert not (tmp_path / "out" / "manifest.json").exists()
    _, lines, found = run(source, tmp_path, text_format=choice)
    assert any("resuming" in line for line in lines) == (choice == "letters")
    assert len(found) == 200 and sum(text.count("<s>") for text in found) == (240 if choice == "letters" else 200)


def test_special_tokens_without_a_known_form_are_encoded_where_that_is_chosen(tmp_path):
    rows = [{"text": f"<s>{ask}<file_sep>{reply}<|endoftext|>"} for ask, reply in ROWS]
    source = write(tmp_path / "in.jsonl", rows)
    with pytest.raises(ValueError, match=r"40 of 40 texts spell special tokens: .*<file_sep> \(40\)"):
        run(source, tmp_path)
    manifest, lines, found = run(source, tmp_path, text_format="rendered")
    assert not manifest["masked"]
    assert sorted(found) == sorted(f"{{{row['text']}}}" for row in rows)
    assert any("40 of 40 texts" in line and "encoded as special tokens" in line for line in lines)


def test_markers_that_no_token_has_are_a_bad_row(tmp_path):
    rows = [{"text": f"<s>[INST] {ask} [/INST]{reply}</s>"} for ask, reply in ROWS]
    rows[5]["text"] = "<s>[INST] no end"
    with pytest.raises(ValueError, match=r"in.jsonl:6: text_format rendered: found '\[INST\]'"):
        run(write(tmp_path / "in.jsonl", rows), tmp_path, text_format="rendered")


def test_a_prompt_that_is_written_out_and_its_completion_are_one_chat(tmp_path):
    rows = [{"prompt": f"<s>[INST] {ask} [/INST]", "completion": f" {reply}</s>"} for ask, reply in ROWS]
    source = write(tmp_path / "in.jsonl", rows)
    message = r"40 of 40 chats spell special tokens: .*<s> \(40\).*--text_format rendered.*--text_format letters"
    with pytest.raises(ValueError, match=message):
        run(source, tmp_path, "auto")
    assert not (tmp_path / "auto" / "manifest.json").exists()
    _, lines, _ = run(source, tmp_path, "letters", text_format="letters")
    assert any("40 of 40 chats spell special tokens" in line and "they stay letters" in line for line in lines)
    _, _, found = run(source, tmp_path, text_format="rendered")
    assert sorted(found) == sorted(f"<s>[INST] {ask} [/INST]{{ {reply} <|endoftext|>}}" for ask, reply in ROWS)


def test_chats_of_which_fewer_than_half_spell_special_tokens_are_counted(tmp_path):
    rows = [{"prompt": f"{ask} <s>" if i < 19 else ask, "completion": reply} for i, (ask, reply) in enumerate(ROWS)]
    _, lines, _ = run(write(tmp_path / "in.jsonl", rows), tmp_path)
    assert any("19 of 40 chats spell special tokens" in line and "they stay letters" in line for line in lines)


def test_documents_that_are_left_out_are_counted_aloud(tmp_path):
    rows = [{"text": ask} for ask, _ in ROWS] + [{"text": ""}] * 15 + [{"text": "ab"}] * 2 + [{"text": ROWS[0][0]}] * 3
    source = write(tmp_path / "in.jsonl", rows)
    _, lines, _ = run(source, tmp_path, min_text_length=3, dedup=True)
    said = "15 empty, 2 shorter than min_text_length, 3 copies of an earlier one"
    assert f"documents left out: {said}" in lines
    source = write(tmp_path / "all.jsonl", rows[:40])
    assert not any("left out" in line for line in run(source, tmp_path, "all")[1])


def test_chats_of_letters_are_named_and_read_where_that_is_chosen(tmp_path):
    rows = [{"text": f"### Instruction:\n{ask}\n\n### Response:\n{reply}"} for ask, reply in ROWS]
    source = write(tmp_path / "in.jsonl", rows)
    _, lines, _ = run(source, tmp_path, "letters")
    assert any("40 of 40 texts are chats written out as alpaca" in line for line in lines)
    manifest, _, found = run(source, tmp_path, text_format="rendered")
    assert manifest["chat_format"] == "alpaca" and all(text.count("{") == 1 for text in found)


def test_a_turn_of_weight_zero_is_in_the_shards_and_not_learned(tmp_path):
    rows = [
        {
            "messages": [
                {"role": "user", "content": ask},
                {"role": "assistant", "content": f"WRONG {reply}", "weight": 0},
                {"role": "user", "content": "No."},
                {"role": "assistant", "content": reply, "weight": 1},
            ]
        }
        for ask, reply in ROWS
    ]
    _, _, found = run(write(tmp_path / "in.jsonl", rows), tmp_path)
    for text in found:
        before, _, learned = text.partition("{")
        assert "WRONG" in before and "WRONG" not in learned and learned.endswith("<|im_end|>}\n")


def test_columns_that_are_not_used_and_a_mixture_are_named(tmp_path):
    (tmp_path / "in").mkdir()
    pairs = [{"input": ask, "output": reply, "id": i, "lang": "en"} for i, (ask, reply) in enumerate(ROWS)]
    write(tmp_path / "in" / "a.jsonl", pairs)
    write(tmp_path / "in" / "b.jsonl", [{"text": f"{ask} {reply}", "url": None} for ask, reply in ROWS])
    _, lines, found = run(str(tmp_path / "in"), tmp_path)
    first = f"{tmp_path / 'in' / 'a.jsonl'}: reading input + output as chats; columns not used: id, lang"
    assert first in lines and f"{tmp_path / 'in' / 'b.jsonl'}: reading text" in lines
    assert f"{tmp_path / 'in'}: 40 chats and 40 texts" in lines
    assert f"{tmp_path / 'in'}: columns not used: id (40 rows), lang (40 rows)" in lines
    assert len(found) == 80


def test_rows_that_are_all_refused_are_named_before_a_tokenizer_is_trained(tmp_path):
    rows = [{"chosen": ask, "rejected": reply} for ask, reply in ROWS]
    with pytest.raises(ValueError, match=r"in\.jsonl.*column 'chosen': found a text without"):
        run(write(tmp_path / "in.jsonl", rows), tmp_path)
    rows = [{"messages": [{"role": "customer", "content": ask}]} for ask, _ in ROWS]
    with pytest.raises(ValueError, match=r"in\.jsonl:1: messages\[0\]: found the role 'customer'"):
        run(write(tmp_path / "in.jsonl", rows), tmp_path)
