"""Tokenizers of GGUF metadata: the same ids as llama.cpp, and errors where the metadata is incomplete."""

import json
import random
from typing import Any

import pytest

from shared_tokenizer.gguf.reader import gguf_tokenizer
from shared_tokenizer.tokenizers.sentencepiece_model import BYTE_PIECES
from shared_tokenizer.tokenizers.tokenizer import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
GPT2_TOKENS = ["<|endoftext|>", *"abc12!", "\u0120", "ab", "abc", "12", "cab"]
LLAMA_TOKENS = ["<unk>", "<s>", "</s>", *BYTE_PIECES, "\u2581", *"abc", "ab", "\u2581ab", "bc"]


def byte_level(**changes: Any) -> dict[str, Any]:
    """Return the metadata of a byte-level BPE without a merge that makes "cab"."""
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": list(GPT2_TOKENS),
        "tokenizer.ggml.token_type": [CONTROL] + [NORMAL] * (len(GPT2_TOKENS) - 1),
        "tokenizer.ggml.merges": ["a b", "ab c", "1 2"],
        "tokenizer.ggml.eos_token_id": 0,
    }
    return changed(metadata, changes)


def sentencepiece(**changes: Any) -> dict[str, Any]:
    """Return the metadata of a sentencepiece BPE whose scores rank "bc" over "ab", and "ab" over " ab"."""
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": list(LLAMA_TOKENS),
        "tokenizer.ggml.scores": [0.0] * 259 + [-10.0, -11.0, -12.0, -13.0, -2.0, -3.0, -1.0],
        "tokenizer.ggml.token_type": [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * 7],
    }
    return changed(metadata, changes)


def changed(metadata: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return metadata with other values; None removes a key. Names lack the prefix `tokenizer.ggml.`."""
    found = metadata | {f"tokenizer.ggml.{name}": value for name, value in changes.items()}
    return {key: value for key, value in found.items() if value is not None}


def opened(metadata: dict[str, Any]) -> Tokenizer:
    tokenizer = gguf_tokenizer(metadata)
    assert tokenizer is not None
    return tokenizer


def tokens_of(tokenizer: Tokenizer, text: str) -> list[bytes]:
    return [tokenizer.pieces[i] for i in tokenizer.encode(text)]


@pytest.mark.parametrize("model", [None, "none", "no_vocab"])
def test_a_file_without_a_tokenizer_has_none(model):
    assert gguf_tokenizer(byte_level(model=model)) is None


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("gpt-2", [b"12", b"c", b"ab", b"!"]),
        ("smollm", [b"1", b"2", b"c", b"ab", b"!"]),  # every digit alone
        ("llama-bpe", [b"12", b"cab", b"!"]),  # a word that is a token
        ("llama3", [b"12", b"cab", b"!"]),
        ("qwen2", [b"1", b"2", b"c", b"ab", b"!"]),
    ],
)
def test_words_are_cut_as_the_pre_tokenizer_says(pre, expected):
    assert tokens_of(opened(byte_level(pre=pre, add_bos_token=False)), "12cab!") == expected


@pytest.mark.parametrize("pre", [None, "default", "tekken", 5, ["smollm"]])
def test_other_pre_tokenizers_are_refused(pre):
    with pytest.raises(ValueError, match=r"tokenizer.ggml.pre: found .*'gpt-2', 'smollm', .* original directory"):
        gguf_tokenizer(byte_level(pre=pre))


def test_the_begin_token_comes_first_where_the_metadata_or_the_pre_tokenizer_says_so():
    assert opened(byte_level()).bos_id is None
    assert opened(byte_level(bos_token_id=0)).bos_id is None
    assert opened(byte_level(bos_token_id=0, add_bos_token=True)).start_ids == [0]
    assert opened(byte_level(bos_token_id=0, pre="llama-bpe")).start_ids == [0]
    assert opened(sentencepiece()).start_ids == [1]
    assert opened(sentencepiece(add_bos_token=False)).bos_id is None


def test_special_tokens_are_what_the_metadata_says(tmp_path):
    tokens = [*GPT2_TOKENS, "<|im_end|>", "<think>", "<fill>"]
    types = [CONTROL, *[NORMAL] * 11, USER_DEFINED, USER_DEFINED, CONTROL]
    tokenizer = opened(byte_level(tokens=tokens, token_type=types, padding_token_id=14, eos_token_id=12))
    assert tokenizer.special_tokens == {"<|endoftext|>": 0, "<|im_end|>": 12, "<fill>": 14}
    assert (tokenizer.eos_id, tokenizer.pad_id) == (12, 14)
    assert tokenizer.encode("a<think>b") == [1, 13, 2]
    assert not {0, 12, 14} & set(tokenizer.encode("<|im_end|><fill><|endoftext|>"))
    tokenizer.save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_bytes())
    assert (config["eos_token"], config["pad_token"]) == ("<|im_end|>", "<fill>")


def test_fillers_are_left_out():
    tokens, types = [*GPT2_TOKENS, "[PAD12]", "[PAD13]", "[PAD14]"], [CONTROL, *[NORMAL] * 11, *[UNUSED] * 3]
    tokenizer = opened(byte_level(tokens=tokens, token_type=types))
    assert (tokenizer.vocab_size, tokenizer.pad_id) == (12, None)
    tokenizer = opened(byte_level(tokens=tokens, token_type=types, padding_token_id=13))
    assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.pieces[12:]) == (14, 13, [b"", b""])


def test_pieces_are_joined_by_their_scores():
    with_prefix, without = opened(sentencepiece()), opened(sentencepiece(add_space_prefix=False))
    assert tokens_of(with_prefix, "ab") == [b" ab"]
    assert tokens_of(without, "ab") == [b"ab"]
    assert tokens_of(without, "abc") == [b"a", b"bc"]
    assert tokens_of(without, "ababcx") == [b"ab", b"a", b"bc", b"x"]
    assert without.encode("\u00e9") == [3 + 0xC3, 3 + 0xA9]
    assert with_prefix.strips_first_space and not without.strips_first_space


def test_of_equal_scores_the_first_is_joined():
    scores = [0.0] * 259 + [-1.0] * 7
    assert tokens_of(opened(sentencepiece(scores=scores, add_space_prefix=False)), "abc") == [b"ab", b"c"]


def test_sentencepiece_special_tokens():
    tokens = [*LLAMA_TOKENS, "<|im_end|>", "<more>", "[PAD268]", "[PAD269]"]
    types = [CONTROL, UNKNOWN, NORMAL, *[BYTE] * 256, *[NORMAL] * 7, USER_DEFINED, CONTROL, UNUSED, UNUSED]
    scores = [0.0] * len(tokens)
    tokenizer = opened(sentencepiece(tokens=tokens, token_type=types, scores=scores, padding_token_id=267))
    assert tokenizer.special_tokens == {"<unk>": 0, "<s>": 1, "</s>": 2, "<|im_end|>": 266, "<more>": 267}
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size) == (1, 2, 267, 268)
    assert 266 not in tokenizer.encode("<|im_end|>")


def test_the_chat_template_is_kept(tmp_path):
    tokenizer = opened(byte_level() | {"tokenizer.chat_template": "{{ messages }}\u00e9"})
    tokenizer.save(tmp_path)
    assert (tmp_path / "chat_template.jinja").read_text("utf-8") == "{{ messages }}\u00e9"


COUNT, FEWER = len(GPT2_TOKENS), GPT2_TOKENS[:-1]
DAMAGED_BYTE_LEVEL: dict[str, list[Any]] = {
    "model": [5, "t5", ["gpt2"]],
    "tokens": [None, "abc", [*FEWER, 7], [*FEWER, b"x"], [*FEWER, "a"], [*FEWER, ""], [*FEWER, "x" * 1025]],
    "token_type": [None, 3, [], [1], [1] * (COUNT + 1), *([1] * (COUNT - 1) + [bad] for bad in (0, 6, 7, True, 1.0))],
    "merges": [None, "a b", ["a b", "a b"], ["ab"], ["a b c"], ["a x"], ["a c"], [" "], ["a b", 5], ["a "]],
    "eos_token_id": [None, COUNT, -1, True, 0.0, "0", [0]],
    "bos_token_id": [COUNT, 2**40],
    "padding_token_id": [COUNT],
    "unknown_token_id": [COUNT],
    "add_bos_token": ["yes", 1, True],  # true, and no begin token
    "add_space_prefix": ["no", 0, True],
}
ENDS = [0.0] * (len(LLAMA_TOKENS) - 1)
DAMAGED_SENTENCEPIECE: dict[str, list[Any]] = {
    "scores": [None, [], ENDS, [*ENDS, float("nan")], [*ENDS, float("inf")], [*ENDS, 1], [*ENDS, "1"]],
    "token_type": [
        [UNKNOWN, *[CONTROL] * 258, *[NORMAL] * 7],  # no bytes
        [UNKNOWN, CONTROL, BYTE, *[BYTE] * 255, *[NORMAL] * 8],
        [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, USER_DEFINED, *[NORMAL] * 6],
    ],
    "eos_token_id": [len(LLAMA_TOKENS)],
    "add_space_prefix": ["no", 0],
}
DAMAGED = [
    (make(**{name: value}), name)
    for make, damage in ((byte_level, DAMAGED_BYTE_LEVEL), (sentencepiece, DAMAGED_SENTENCEPIECE))
    for name, values in damage.items()
    for value in values
]


@pytest.mark.parametrize(("metadata", "name"), DAMAGED, ids=[name for _, name in DAMAGED])
def test_what_is_damaged_is_refused_by_name(metadata, name):
    with pytest.raises(ValueError, match=rf"tokenizer of a GGUF file: .*{name}") as error:
        gguf_tokenizer(metadata)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("template", [5, ["x"], "x" * 100_001, "\ud800"])
def test_a_chat_template_that_is_no_text_is_refused(template):
    with pytest.raises(ValueError, match="tokenizer of a GGUF file"):
        gguf_tokenizer(byte_level() | {"tokenizer.chat_template": template})


def test_errors_name_the_key_and_both_sides():
    with pytest.raises(ValueError, match=r"tokenizer.ggml.token_type: found 1 values, expected one per token, 12"):
        gguf_tokenizer(byte_level(token_type=[1]))
    with pytest.raises(ValueError, match=r"tokenizer.ggml.tokens: found 'a' twice, at 1 and 11"):
        gguf_tokenizer(byte_level(tokens=[*GPT2_TOKENS[:-1], "a"]))
    with pytest.raises(ValueError, match=r"merges: merge 1 is 'a' 'c', but 'ac' is not in the vocabulary"):
        gguf_tokenizer(byte_level(merges=["a c"]))
    with pytest.raises(ValueError, match=r"tokenizer.ggml.eos_token_id: found 12, expected a token's id, 0..11"):
        gguf_tokenizer(byte_level(eos_token_id=12))
    with pytest.raises(ValueError, match=r"tokenizer.ggml.model: found 't5', expected 'llama' .* original directory"):
        gguf_tokenizer(byte_level(model="t5"))


def test_a_text_that_ends_with_the_unknown_token_is_refused():
    with pytest.raises(ValueError, match="end-of-text token"):
        gguf_tokenizer(sentencepiece(eos_token_id=0))


def test_random_damage_is_refused_or_read():
    """Raise nothing but ValueError, whatever the values are."""
    rng = random.Random(0)
    values: list[Any] = [
        None,
        0,
        -1,
        2**63,
        0.5,
        float("nan"),
        True,
        "",
        "a",
        "\ud800",
        [],
        [[]],
        [None],
        {},
        ["a"] * 13,
    ]
    refused = 0
    for _ in range(300):
        metadata = rng.choice((byte_level, sentencepiece))()
        for key in rng.sample(sorted(metadata), 2):
            value = metadata[key]
            if isinstance(value, list) and rng.random() < 0.7:
                value[rng.randrange(len(value))] = rng.choice(values)
            else:
                metadata[key] = rng.choice(values)
        try:
            tokenizer = gguf_tokenizer(metadata)
        except ValueError:
            refused += 1
        else:
            assert tokenizer is None or tokenizer.decode(tokenizer.encode("ab")) == "ab"
    assert refused > 200
