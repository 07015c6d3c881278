"""Training a tokenizer, and the choice of its text."""

import argparse
import inspect
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared_tokenizer.load import load_tokenizer
from shared_tokenizer.tokenizers.train import (
    PIECE_CHARACTERS,
    SMALLEST_VOCAB,
    SPECIAL_TOKENS,
    sample_texts,
    train_tokenizer,
)
from tests.shared_tokenizer.tokenizers.tokenizers_of_every_kind import CORPUS

SOURCE = [inspect.getsource(argparse)]


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def model_type(request):
    return request.param


@pytest.fixture(scope="module")
def trained(model_type):
    return train_tokenizer(SOURCE, 1000, model_type=model_type)


def test_ids_begin_with_the_special_tokens():
    tokenizer = train_tokenizer(CORPUS, 420, special_tokens=["<tool>", "a, b", '"q"'])
    assert tokenizer.special_tokens == {token: i for i, token in enumerate((*SPECIAL_TOKENS, "<tool>", "a, b", '"q"'))}
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 3)
    assert SPECIAL_TOKENS[tokenizer.eos_id] == "<|endoftext|>"


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ([""], "found '', expected printable text"),
        ([" a"], "found ' a', expected printable text"),
        (["a\nb"], "expected printable text"),
        (["a\u2581b"], "expected printable text"),
        (["<a>", "<a>"], "found '<a>', which the vocabulary already holds"),
        (["<|im_end|>"], "found '<|im_end|>', which the vocabulary already holds"),
        (["<0x41>"], "found '<0x41>', which the vocabulary already holds"),
        (["a"], "found 'a', a single character"),
        (["é"], "found 'é', a single character"),
    ],
)
def test_special_tokens_that_cannot_be_are_refused(tokens, words):
    with pytest.raises(ValueError, match="special_tokens: ") as error:
        train_tokenizer(CORPUS, 420, special_tokens=tokens)
    assert words in str(error.value)


def test_sizes_that_cannot_be_trained_are_refused():
    with pytest.raises(ValueError, match=f"found {SMALLEST_VOCAB}, expected more than {SMALLEST_VOCAB}"):
        train_tokenizer(["text"], SMALLEST_VOCAB)
    with pytest.raises(ValueError, match=r"vocab_size: found 5000, expected at most \d+ for a corpus of this size"):
        train_tokenizer(["a short text"], 5000)
    size = SMALLEST_VOCAB + 5
    with pytest.raises(ValueError, match=rf"vocab_size: found {size}, expected at least \d+ for the characters"):
        train_tokenizer(["abcdefghijklmnopqrstuvwxyz 0123456789"], size)
    with pytest.raises(ValueError, match=r"vocab_size: found 10{12}, expected at most \d+"):
        train_tokenizer(["text"], 10**12)
    with pytest.raises(ValueError, match="could not train"):
        train_tokenizer([], 300)
    with pytest.raises(ValueError, match="model_type: found 'word', expected 'bpe' or 'unigram'"):
        train_tokenizer(CORPUS, 420, model_type="word")


def test_a_newline_ends_its_token(trained):
    with_newline = [piece for piece in trained.pieces if b"\n" in piece]
    assert all(piece.index(b"\n") == len(piece) - 1 for piece in with_newline)
    assert any(len(piece) > 2 for piece in with_newline)  # and merges with what is before it


@given(
    lines=st.lists(
        st.one_of(st.text(max_size=20), st.sampled_from(CORPUS), st.text(" #\ndef():", max_size=20)), max_size=6
    )
)
def test_text_encoded_in_pieces_at_line_ends_is_the_text_encoded_whole(trained, lines):
    lines = [line + "\n" for line in lines]
    assert trained.encode("".join(lines)) == [i for line in lines for i in trained.encode(line)]


def test_the_same_texts_give_the_same_model(trained, model_type):
    again = train_tokenizer(SOURCE, 1000, model_type=model_type)
    assert again.fingerprint == trained.fingerprint


def test_no_text_is_passed_over():
    """Keep a text whatever its length, and with sentencepiece's sign for unknown characters."""
    for text in ("longword " * 40_000, "longword \u2585 " * 40, "longword\t\x00" * 40):
        assert b"longword" in b"|".join(train_tokenizer([text], SMALLEST_VOCAB + 19).pieces)


def test_a_sample_that_holds_everything_keeps_everything_in_one_order():
    texts = [f"text {i % 50}" for i in range(100)]
    sample = sample_texts(texts, 10_000)
    assert sorted(sample) == sorted(texts)
    random.Random(0).shuffle(texts)
    assert sample_texts(texts, 10_000) == sample


@given(
    texts=st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=30),
    size_bytes=st.integers(30, 300),
    seed=st.integers(0, 100),
)
def test_a_sample_does_not_depend_on_the_order(texts, size_bytes, seed):
    sample = sample_texts(texts, size_bytes)
    shuffled = texts.copy()
    random.Random(seed).shuffle(shuffled)
    assert sample_texts(shuffled, size_bytes) == sample
    size = sum(len(text.encode()) for text in sample)
    assert size <= size_bytes or len(sample) == 1
    if len(sample) < len(texts):  # and the next one would not fit
        assert size + max(len(text.encode()) for text in texts) > size_bytes


def test_a_huge_text_neither_fills_the_sample_nor_is_left_out():
    huge = "".join(chr(0x4E00 + i % 5000) for i in range(20 * PIECE_CHARACTERS))
    small = [f"small text {i} " * 100 for i in range(2000)]
    sample = sample_texts([huge, *small], 2_000_000)
    from_huge = [piece for piece in sample if piece in huge]
    assert 0 < len(from_huge) < 20
    assert len(sample) - len(from_huge) > 500
    assert 1_500_000 < sum(len(piece.encode()) for piece in sample) <= 2_000_000
    with pytest.raises(ValueError, match="size_bytes: found 0, expected at least 1"):
        sample_texts(["a"], 0)


@pytest.mark.parametrize(("model_type", "vocab_size"), [("bpe", 289), ("unigram", 320)])
def test_a_corpus_without_spaces_gives_a_tokenizer_that_writes_them(model_type, vocab_size, tmp_path):
    sums = [f"{a}+{b}={a + b}" for a in range(60) for b in range(60)]
    trained = train_tokenizer(sums, vocab_size, model_type=model_type)
    trained.save(tmp_path)
    read = load_tokenizer(tmp_path)
    assert read.fingerprint == trained.fingerprint
    assert read.decode(read.encode("1 2  x")) == "1 2  x" and len(read.encode("1 2")) == 3


def test_a_unigram_model_has_no_special_token_of_two_words():
    with pytest.raises(ValueError, match="special_tokens: found 'a b', expected no space in a token of a unigram"):
        train_tokenizer(CORPUS, 420, model_type="unigram", special_tokens=["a b"])
