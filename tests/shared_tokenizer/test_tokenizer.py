import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_tokenizer.tokenizer import Tokenizer
from shared_tokenizer.train import CHAT_MARKERS, SMALLEST_VOCAB, train_tokenizer

AWKWARD = [
    "",
    " ",
    "   leading and   repeated  spaces ",
    "\ttabs\r\nand\n\n\nlines\n",
    "<s> <|im_start|>user</s><unk><pad>",
    "\u2581 the space marker itself",
    "\x00\x01\x7f control",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 \u4f60\u597d \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "<0x41> is not A",
    "e\u0301 \u00e9 \ufb01 \uff21",
]


@pytest.mark.parametrize("text", AWKWARD)
def test_decoding_gives_back_the_text(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(text=st.text())
@settings(max_examples=300)
def test_decoding_gives_back_any_text(tokenizer, text):
    text = text.encode("utf-8", "ignore").decode("utf-8")
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes[ids].sum() == len(text.encode("utf-8"))


def test_special_tokens_are_never_parsed_out_of_text(tokenizer):
    special = np.flatnonzero(tokenizer.token_bytes == 0)
    assert len(special) == 4 + len(CHAT_MARKERS)
    for text in (*CHAT_MARKERS, "<s>", "</s>", "<unk>", "<pad>"):
        assert not set(tokenizer.encode(text)) & set(special.tolist())


def test_batch_and_prompt(tokenizer):
    texts = ["def f():", "", "class A"]
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]
    assert tokenizer.encode_prompt("def") == [tokenizer.bos_id, *tokenizer.encode("def")]


def test_saved_is_loaded_with_the_same_fingerprint(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.encode("def add") == tokenizer.encode("def add")


def test_what_is_no_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"found no tokenizer\.model"):
        Tokenizer.load(tmp_path)
    for content in (b"", b"not a model", bytes(1000)):
        (tmp_path / "tokenizer.model").write_bytes(content)
        with pytest.raises(ValueError, match=r"tokenizer\.model: tokenizer: found"):
            Tokenizer.load(tmp_path)


def test_sizes_that_cannot_be_trained_are_refused():
    with pytest.raises(ValueError, match=f"found {SMALLEST_VOCAB}, expected more than {SMALLEST_VOCAB}"):
        train_tokenizer(["text"], SMALLEST_VOCAB)
    with pytest.raises(ValueError, match=r"vocab_size: found 5000, but this corpus is too small for more than \d+"):
        train_tokenizer(["a short text"], 5000)
    with pytest.raises(ValueError, match=r"vocab_size: found 265, expected at least \d+ for the characters"):
        train_tokenizer(["abcdefghijklmnopqrstuvwxyz 0123456789"], 265)
    with pytest.raises(ValueError, match="could not train"):
        train_tokenizer([], 300)


def test_a_prompt_that_is_not_unicode_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"prompt: found .* at 2, expected UTF-8 text"):
        tokenizer.encode_prompt("ab\udcff")
