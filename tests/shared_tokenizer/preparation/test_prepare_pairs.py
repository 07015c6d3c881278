"""Pairs of answers, from rows to shards."""

import json

import pytest

from shared_tokenizer.data.data_sets import DataSets
from shared_tokenizer.data.shards import read_manifest
from tests.shared_tokenizer.preparation.test_report_rows import ROWS, run, write

PAIRS = [{"prompt": ask, "chosen": f"Please: {reply}", "rejected": reply, "score": 1} for ask, reply in ROWS]


def test_a_pair_is_two_documents_of_which_the_answers_are_learned(tmp_path):
    manifest, lines, found = run(write(tmp_path / "in.jsonl", PAIRS), tmp_path)
    assert manifest["pairs"] and read_manifest(tmp_path / "out")["pairs"]
    assert any("reading prompt + chosen + rejected as pairs; columns not used: score" in line for line in lines)
    assert len(found) == 2 * len(PAIRS) == sum(split["documents"] for split in manifest["splits"].values())
    for chosen, rejected in zip(found[::2], found[1::2], strict=True):
        question, answer = chosen.split("{")
        assert rejected.split("{") == [question, answer.replace("Please: ", "")]
    assert json.loads((tmp_path / "out" / "stats.json").read_text())["pairs"] == len(PAIRS)


def test_pairs_that_compare_nothing_are_left_out_named_and_counted(tmp_path):
    rows = [*PAIRS, {"prompt": "a", "chosen": "b", "rejected": None}, {"prompt": "a", "chosen": "b", "rejected": "b"}]
    _, lines, found = run(write(tmp_path / "in.jsonl", rows), tmp_path)
    assert len(found) == 2 * len(PAIRS)
    place = lines.index("pairs left out: 1 without a chosen or a rejected answer, 1 with equal answers, the first:")
    assert "in.jsonl:41: column 'rejected': found no answer" in lines[place + 1]
    assert "in.jsonl:42: found equal answers" in lines[place + 2]
    left_out = json.loads((tmp_path / "out" / "stats.json").read_text())["left_out"]
    assert (left_out["unpaired"], left_out["equal_answers"], left_out["bad_rows"]) == (1, 1, 0)


def test_answers_that_the_chat_format_writes_alike_are_left_out(tmp_path):
    rows = [*PAIRS, {"prompt": "a", "chosen": "b ", "rejected": "b"}]
    _, lines, found = run(write(tmp_path / "in.jsonl", rows), tmp_path, chat_format="llama-3", **LLAMA)
    assert len(found) == 2 * len(PAIRS) and any("writes alike" in line for line in lines)


LLAMA = {"special_tokens": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]}


def test_pairs_and_texts_are_not_mixed(tmp_path):
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.jsonl", PAIRS)
    write(tmp_path / "in" / "b.jsonl", [{"text": "abc"}])
    with pytest.raises(
        ValueError, match=r"a\.jsonl: found pairs of answers, and in .*b\.jsonl none.*text_column chosen"
    ):
        run(str(tmp_path / "in"), tmp_path)


def test_a_limit_never_cuts_a_pair(tmp_path):
    _, _, found = run(write(tmp_path / "in.jsonl", PAIRS), tmp_path, max_samples=21, val_fraction=0.5)
    assert len(found) == 20


def test_copies_of_a_pair_are_left_out_with_dedup(tmp_path):
    other = PAIRS[0] | {"rejected": "No."}
    _, lines, found = run(write(tmp_path / "in.jsonl", [*PAIRS, PAIRS[0], other]), tmp_path, dedup=True)
    assert len(found) == 2 * (len(PAIRS) + 1) and "documents left out: 1 copies of an earlier one" in lines


def test_a_set_of_pairs_is_opened_for_pairs_alone_and_the_other_way_round(tmp_path):
    run(write(tmp_path / "in.jsonl", PAIRS), tmp_path)
    with pytest.raises(ValueError, match=r"out: found pairs of answers.*--objective orpo.*--text_column chosen"):
        DataSets.open([tmp_path / "out"], 64)
    run(write(tmp_path / "chats.jsonl", PAIRS), tmp_path, name="chats", text_column="chosen")
    with pytest.raises(ValueError, match=r"chats: found texts or chats, expected pairs.*--objective next_token"):
        DataSets.open([tmp_path / "chats"], 64, pairs=True)
