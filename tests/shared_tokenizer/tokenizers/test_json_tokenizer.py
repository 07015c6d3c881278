"""Tokenizers of the tokenizers library: their special tokens, and the files that are refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from shared_tokenizer.load import has_tokenizer, load_tokenizer
from shared_tokenizer.tokenizers.json_tokenizer import JsonTokenizer
from shared_tokenizer.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from tests.shared_tokenizer.tokenizers.tokenizers_of_every_kind import (
    byte_level,
    byte_level_library_tokenizer,
    gpt2_files,
    imported_model,
    marked_spaces,
    word_pieces,
    words,
)

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def added(token_id: Any, content: str, *, special: bool = True) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": content, **flags, "special": special}


def definition(**parts: Any) -> bytes:
    """Return a small byte-level BPE; `parts` replace those of its definition."""
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "\u0120": 3, "</s>": 4}, "merges": [["a", "b"]]}
    whole = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [added(4, "</s>")]}
    whole |= {"normalizer": None, "pre_tokenizer": BYTE_LEVEL, "post_processor": None, "decoder": BYTE_LEVEL}
    return json.dumps(whole | {"model": model | parts.pop("model", {})} | parts).encode()


def test_bytes_are_read_from_their_alphabet():
    tokenizer = JsonTokenizer(definition())
    assert tokenizer.pieces == [b"a", b"b", b"ab", b" ", b""]
    assert (tokenizer.vocab_size, tokenizer.eos_id, tokenizer.bos_id, tokenizer.pad_id) == (5, 4, None, None)
    assert tokenizer.encode("ab ba") == [2, 3, 1, 0]


def test_bytes_that_are_lost_are_known():
    tokenizer = JsonTokenizer(definition())
    assert tokenizer.encode("a\x04b") == [0, 1]
    present = set(b"ab ")
    assert tokenizer.missing_bytes == {byte for byte in range(0xF5) if byte not in (0xC0, 0xC1)} - present
    assert byte_level().missing_bytes == marked_spaces().missing_bytes == frozenset()


def test_settings_that_change_ids_from_call_to_call_are_left_out():
    cut = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    filled = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
    filled |= {"pad_type_id": 0, "pad_token": "a"}
    tokenizer = JsonTokenizer(definition(truncation=cut, padding=filled, model={"dropout": 0.5}))
    assert tokenizer.encode("ab" * 50) == [2] * 50
    assert tokenizer.encode_batch(["a", "ab" * 50]) == [[0], [2] * 50]


def test_chat_markers_are_special_even_if_not_marked_so():
    tokens = [added(4, "</s>"), added(5, "<|im_end|>", special=False), added(6, "ba ", special=False)]
    tokenizer = JsonTokenizer(definition(added_tokens=tokens))
    assert tokenizer.special_tokens == {"</s>": 4, "<|im_end|>": 5}
    assert 5 not in tokenizer.encode("a<|im_end|>b")
    assert tokenizer.encode("aba b") == [0, 6, 1]  # others are text
    assert tokenizer.pieces[4:] == [b"", b"", b"ba "]


def test_special_tokens_that_the_model_itself_would_find_are_spelled_out():
    pieces = [["<unk>", 0.0], ["</s>", 0.0], *[[character, -2.0] for character in "</s>ab"]]
    model = {"type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": False, "merges": None}
    tokenizer = JsonTokenizer(
        definition(model=model, added_tokens=[added(1, "</s>")], pre_tokenizer=None, decoder=None)
    )
    assert tokenizer.decode(tokenizer.encode("a</s>b")) == "a</s>b"
    assert 1 not in tokenizer.encode("a</s>b")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"tokenizer_config.json": {"eos_token": "a"}}, 0),
        ({"tokenizer_config.json": {"eos_token": {"content": "b"}}}, 1),
        ({"special_tokens_map.json": {"eos_token": {"content": "b"}}}, 1),
        # As in transformers, see tests/witness/test_directories.py.
        ({"tokenizer_config.json": {"eos_token": "a"}, "special_tokens_map.json": {"eos_token": "b"}}, 1),
        (
            {
                "tokenizer_config.json": {"eos_token": "a", "added_tokens_decoder": {}},
                "special_tokens_map.json": {"eos_token": "b"},
            },
            0,
        ),
        ({"tokenizer_config.json": {"eos_token": None}, "config.json": {"eos_token_id": [2, 1]}}, 2),
        ({"generation_config.json": {"eos_token_id": 3}, "config.json": {"eos_token_id": 2}}, 3),
        ({"config.json": {"eos_token_id": 99}}, 4),
        ({}, 4),
    ],
    ids=str,
)
def test_the_end_of_text_token_is_looked_for_in_this_order(files, expected, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(definition())
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.eos_id == expected
    assert tokenizer.pieces[expected] == b""
    assert expected not in tokenizer.encode("ab a b </s>")[:1]
    saved = tmp_path / "saved"  # without config.json: what it said is in tokenizer_config.json now
    saved.mkdir()
    tokenizer.save(saved)
    assert load_tokenizer(saved).fingerprint == tokenizer.fingerprint


def test_no_end_of_text_token_is_an_error(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(definition(model={"vocab": {"a": 0, "b": 1, "ab": 2}}, added_tokens=[]))
    with pytest.raises(ValueError, match=r"tokenizer\.json: .*no end-of-text token; name one as eos_token in"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    with pytest.raises(ValueError, match=r"found eos_token '<end>', which the vocabulary does not have; name one"):
        load_tokenizer(tmp_path)


def test_a_begin_token_is_put_only_where_a_file_says_so():
    def bos(config: dict[str, Any]) -> int | None:
        return JsonTokenizer(definition(), {"tokenizer_config.json": json.dumps(config).encode()}).bos_id

    assert bos({"bos_token": "b"}) is None
    assert bos({"bos_token": "b", "add_bos_token": True}) == 1
    assert bos({"bos_token": "b", "add_bos_token": False}) is None


def test_an_empty_document_without_a_begin_token_starts_after_the_end_of_another():
    tokenizer = JsonTokenizer(byte_level_library_tokenizer().to_str().encode())
    assert tokenizer.start_ids == [] and tokenizer.encode("") == []
    assert (tokenizer.encode_prompt(""), tokenizer.encode_to_continue("")) == ([], [tokenizer.eos_id])
    assert tokenizer.encode_to_continue("ab") == tokenizer.encode("ab")


def test_ids_may_have_holes():
    model = {"vocab": {"a": 0, "b": 5, "ab": 9, "</s>": 7}}
    tokenizer = JsonTokenizer(definition(model=model, added_tokens=[added(7, "</s>")]))
    assert tokenizer.vocab_size == 10
    assert [i for i, piece in enumerate(tokenizer.pieces) if piece] == [0, 5, 9]


BAD = {
    "empty": (b"", "not JSON"),
    "not JSON": (b"{bad", "not JSON"),
    "not UTF-8": (b'{"a": "\xff"}', "not JSON"),
    "nested": (b"[" * 100_000, "not JSON"),
    "another type": (b"[]", "found a JSON list, expected an object"),
    "no model": (b"{}", "found no model with a vocabulary"),
    "a model of another type": (b'{"model": 1}', "found no model with a vocabulary"),
    "no vocabulary": (definition(model={"vocab": {}}), "found no model with a vocabulary"),
    "a key twice": (b'{"model": {"vocab": {"a": 0, "a": 1}}}', "the key 'a' twice"),
    "an id twice": (definition(model={"vocab": {"a": 0, "b": 0}}), "found id 0 twice, for 'a' and 'b'"),
    "negative": (definition(model={"vocab": {"a": -1}}), "'a': found id -1, expected a whole number"),
    "fraction": (definition(model={"vocab": {"a": 0.5}}), "'a': found id 0.5, expected a whole number"),
    "text": (definition(model={"vocab": {"a": "0"}}), "found id '0', expected a whole number"),
    "true": (definition(model={"vocab": {"a": True}}), "found id True, expected a whole number"),
    "huge": (definition(model={"vocab": {"a": 2**31}}), "found id 2147483648, expected a whole number"),
    "merges": (definition(model={"merges": [["a", "x"]]}), "merge 1 is 'a' 'x', but 'x' is not in the vocabulary"),
    "merges that make nothing": (definition(model={"merges": ["b a"]}), "'ba' is not in the vocabulary"),
    "merges without their prefix": (definition(model={"continuing_subword_prefix": "##"}), "to begin with '##'"),
    "merges of three": (definition(model={"merges": [["a", "b", "c"]]}), "merges: found ['a', 'b', 'c']"),
    "merges of no kind": (definition(model={"merges": 5}), "merges: found 5, expected two pieces"),
    "added twice": (definition(added_tokens=[added(4, "</s>")] * 2), "added_tokens: found '</s>' twice"),
    "added with an id of another": (definition(added_tokens=[added(1, "<x>")]), "found id 1 twice"),
    "added with another id": (definition(added_tokens=[added(1, "</s>")]), "'</s>': found id 1, but 4 in the vocab"),
    "added after a hole": (definition(added_tokens=[added(9, "<x>")]), "found '<x>' with id 9, expected 5"),
    "added without id": (definition(added_tokens=[{"content": "<x>"}]), "'<x>': found id None"),
    "added without content": (definition(added_tokens=[{"id": 1}]), "expected an object with content and id"),
    "added of no kind": (definition(added_tokens=7), "found 7, expected an object with content and id"),
    "unknown parts": (definition(decoder={"type": "Nonsense"}), "the tokenizers library reports"),
    "unknown model": (definition(model={"type": "Nonsense"}), "the tokenizers library reports"),
    "unknown token": (definition(model={"unk_token": "?"}), "unk_token: found '?', which is not in the vocabulary"),
    "pieces": (definition(model={"type": "Unigram", "vocab": [["a", 0.0], ["a", 1.0]]}), "vocab: found 'a' twice"),
    "scores": (definition(model={"type": "Unigram", "vocab": [1, 2]}), "found 1, expected a piece and its score"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_damaged_definition_is_refused(case, tmp_path):
    content, words = BAD[case]
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="tokenizer") as error:
        load_tokenizer(tmp_path)
    assert str(error.value).startswith(f"{path}: ")
    assert words in str(error.value)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "config.json"])
def test_a_damaged_side_file_is_refused(name, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(definition())
    (tmp_path / name).write_text("{")
    with pytest.raises(ValueError, match=f"{name}: not JSON"):
        load_tokenizer(tmp_path)


def test_a_definition_cut_anywhere_is_refused():
    whole = definition()
    for size in range(0, len(whole), 7):
        with pytest.raises(ValueError, match="not JSON"):
            JsonTokenizer(whole[:size])


VOCABULARIES = {
    "no merges": ({"a": 0, "\u0120a": 1, "<|endoftext|>": 2}, None, "no merges.txt next to it"),
    "no merges, unknown": ({"a": 0, "\u0120a": 1, "<unk>": 2, "</s>": 3}, None, "no merges.txt next to it"),
    "sentencepiece's": ({"a": 0, "\u2581a": 1, "<unk>": 2, "</s>": 3}, None, "tokenizer.model"),
    "no unknown": ({"a": 0, "b": 1, "</s>": 2}, None, "nor an unknown token ([UNK], <unk>"),
    "no end": ({"a": 0, "<unk>": 1}, None, "name one as eos_token"),
    "empty": ({}, None, "found no tokens"),
    "negative": ({"a": -1}, None, "found id -1"),
    "list": (["a"], None, "expected an object"),
    "merge": ({"a": 0, "b": 1, "</s>": 2}, b"#version: 0.2\na b\n", "merge 1 is 'a' 'b', but 'ab' is not in"),
    "merge of three": ({"a": 0, "</s>": 2}, b"a b c\n", "merges.txt: line 1: found 'a b c', expected two pieces"),
    "merges of bytes": ({"a": 0, "</s>": 2}, b"\xff\n", "merges.txt: not UTF-8 at byte 0"),
    "ends of words": ({"a</w>": 0, "</s>": 2}, b"", "pieces that end with </w>"),
}


@pytest.mark.parametrize("case", VOCABULARIES)
def test_a_vocabulary_that_is_not_enough_is_refused(case, tmp_path):
    vocabulary, merges, words = VOCABULARIES[case]
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    if merges is not None:
        (tmp_path / "merges.txt").write_bytes(merges)
    with pytest.raises(ValueError, match=r"vocab\.json: ") as error:
        load_tokenizer(tmp_path)
    assert words in str(error.value)


def test_vocabulary_and_merges_are_the_tokenizer_they_came_from(tmp_path):
    tokenizer, theirs = gpt2_files(tmp_path), byte_level_library_tokenizer()
    for text in ("def add(first):\n    return 1", "a  b \u4f60 <|endoftext|>", " x"):
        theirs.encode_special_tokens = True
        assert tokenizer.encode(text) == theirs.encode(text).ids
    assert set(tokenizer.special_tokens) == {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}


def test_bare_vocabularies_are_words_or_pieces_of_words(tmp_path):
    for name in ("pieces", "words"):
        (tmp_path / name).mkdir()
    pieces = word_pieces(tmp_path / "pieces")
    names = {i: piece for piece, i in json.loads((tmp_path / "pieces/vocab.json").read_text()).items()}
    assert [names[i] for i in pieces.encode("Adding (return) zzz")] == ["add", "##ing", "(", "return", ")", "[UNK]"]
    assert pieces.eos_id == pieces.special_tokens["[SEP]"]
    assert pieces.pieces[5:8] == [b" def", b" add", b"ing"]
    (tmp_path / "pieces/tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert load_tokenizer(tmp_path / "pieces").encode("Add") == [1]
    whole = words(tmp_path / "words")
    assert whole.encode("add(a) x <pad>") == [4, 8, 6, 9, 0, 0, 0, 0]
    assert (whole.eos_id, whole.pad_id) == (2, 1)


def test_a_file_is_named_or_its_directory(tmp_path):
    assert not has_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=r"found no tokenizer\.model, tokenizer\.json or vocab\.json, expected one"):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="nothing: no such file or directory, expected a tokenizer"):
        load_tokenizer(tmp_path / "nothing")
    byte_level().save(tmp_path)
    assert has_tokenizer(tmp_path)
    assert load_tokenizer(tmp_path / "tokenizer.json").fingerprint == load_tokenizer(tmp_path).fingerprint
    (tmp_path / "tokenizer.json").rename(tmp_path / "renamed.json")
    assert isinstance(load_tokenizer(tmp_path / "renamed.json"), JsonTokenizer)


def test_of_two_in_a_directory_the_one_with_more_tokens_is_read(tmp_path):
    SentencePieceTokenizer(imported_model()).save(tmp_path)
    assert isinstance(load_tokenizer(tmp_path), SentencePieceTokenizer)
    path = tmp_path / "tokenizer.json"
    larger = json.loads(path.read_text("utf-8"))
    larger["added_tokens"].append(added(len(larger["model"]["vocab"]), "<|im_end|>"))
    path.write_text(json.dumps(larger))
    tokenizer = load_tokenizer(tmp_path)
    assert isinstance(tokenizer, JsonTokenizer)
    assert "<|im_end|>" in tokenizer.special_tokens
    path.write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer\.json: tokenizer\.json: not JSON"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"not a model", bytes(1000), imported_model()[:-100], imported_model(eos_id=-1)]
)
def test_what_is_no_sentencepiece_model_is_refused(content, tmp_path: Path):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ValueError, match=r"tokenizer\.model: tokenizer: found"):
        load_tokenizer(tmp_path)
