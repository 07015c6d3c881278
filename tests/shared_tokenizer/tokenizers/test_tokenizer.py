"""The properties that every kind of tokenizer has."""

import json
import multiprocessing
import os
import subprocess
import sys

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_tokenizer.load import has_tokenizer, load_tokenizer
from shared_tokenizer.tokenizers.tokenizer import TextStream, Tokenizer
from tests.shared_tokenizer.tokenizers.tokenizers_of_every_kind import (
    FROM_FILES,
    KINDS,
    LOSSLESS,
    marked_spaces,
    word_pieces,
    words,
)

AWKWARD = [
    "",
    " ",
    "   leading and   repeated  spaces ",
    "\ttabs\r\nand\n\n\nlines\n",
    "<s> <|im_start|>user</s><unk><pad><|endoftext|><mine>",
    "\u2581 the space marker itself",
    "a\u2581\u2581b \u2581",
    "\u2585 sentencepiece's sign for the unknown, and \ufffd",
    "\x00\x01\x7f control",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 \u4f60\u597d \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "<0x41> is not A",
    "e\u0301 \u00e9 \ufb01 \uff21",
    "aaaa    bbbb        1234567890\n" * 3,
]
_open: dict[str, Tokenizer] = {}


@pytest.fixture(scope="session", params=KINDS)
def kind(request) -> str:
    return request.param


def tokenizer_of(kind: str, factory: pytest.TempPathFactory) -> Tokenizer:
    if kind not in _open:
        _open[kind] = LOSSLESS[kind]() if kind in LOSSLESS else FROM_FILES[kind](factory.mktemp(kind))
    return _open[kind]


@pytest.fixture(scope="session")
def every(kind, tmp_path_factory) -> Tokenizer:
    return tokenizer_of(kind, tmp_path_factory)


@pytest.fixture(scope="session", params=[*LOSSLESS, "gpt2"])
def lossless(request, tmp_path_factory) -> Tokenizer:
    return tokenizer_of(request.param, tmp_path_factory)


@pytest.mark.parametrize("text", AWKWARD)
def test_decoding_gives_back_the_text(lossless, text):
    assert lossless.decode(lossless.encode(text)) == text


@given(text=st.one_of(st.text(), st.text(" ab\n\u2581<s>|_", max_size=40)))
@settings(max_examples=150)
def test_decoding_gives_back_any_text(lossless, text):
    ids = lossless.encode(text)
    assert lossless.decode(ids) == text
    size = int(lossless.token_bytes[ids].sum())
    assert size - len(text.encode("utf-8")) == (lossless.strips_first_space and text != "")


def test_marked_spaces_come_back_and_marks_as_spaces():
    tokenizer = marked_spaces()
    for text in (text for text in AWKWARD if "\u2581" not in text):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode("a\u2581b")) == "a b"


def test_words_come_back_with_the_spaces_that_they_had(tmp_path):
    assert (tokenizer := word_pieces(tmp_path)).decode(tokenizer.encode("Adding (return) AB")) == "adding ( return ) ab"
    assert (tokenizer := words(tmp_path)).decode(tokenizer.encode("def  add(a)")) == "def add ( a )"


def test_ids_are_in_the_vocabulary_and_special_ones_have_no_text(every):
    assert len(every.pieces) == len(every.token_bytes) == every.vocab_size
    assert every.special_tokens.items() >= {(token, every.special_tokens[token]) for token in every.special_tokens}
    special = set(every.special_tokens.values())
    assert {every.eos_id, every.pad_id, every.bos_id} - {None} <= special < set(range(every.vocab_size))
    assert all(every.pieces[i] == b"" for i in special)
    assert every.decode(list(special)) == ""


def test_special_tokens_are_never_parsed_out_of_text(every, kind):
    special = dict(every.special_tokens)
    unknown = {special.get(name) for name in ("<unk>", "[UNK]")}
    for text in (*special, *(f"a {token} b" for token in special), "".join(special)):
        assert not set(every.encode(text)) & set(special.values()) - unknown
        if kind in LOSSLESS:
            assert every.decode(every.encode(text)) == text


def test_batches_give_what_single_texts_give(every):
    texts = ["def f():", "", "class A", *AWKWARD]
    expected = [every.encode(text) for text in texts]
    for num_threads in (None, 1, 2):
        assert every.encode_batch(texts, num_threads=num_threads) == expected
    assert every.encode_batch([]) == []


def test_a_prompt_begins_a_document(every, kind):
    assert every.encode_prompt("def") == [*every.start_ids, *every.encode("def")]
    with_bos = ("bpe", "unigram", "imported_bpe", "imported_unigram", "begins_with_bos")
    assert every.start_ids == ([every.bos_id] if kind in with_bos else [])


def test_text_that_is_not_unicode_is_refused(every):
    with pytest.raises(ValueError, match=r"prompt: found .* at 2, expected UTF-8 text"):
        every.encode_prompt("ab\udcff")
    with pytest.raises(ValueError, match="surrogates not allowed"):
        every.encode("ab\udcff")


def test_a_stream_emits_whole_characters_and_what_decode_gives(lossless):
    text = " caf\u00e9 \u4f60 \U0001f680\U0001f468\u200d\U0001f469 x\n"
    stream = TextStream(lossless)
    parts = [stream.add(token) for token in lossless.encode(text)]
    assert "".join(parts) + stream.end() == text
    assert "\ufffd" not in "".join(parts)
    assert "" in parts  # the rocket is in no corpus: its bytes come one by one


def test_ids_of_a_padded_vocabulary_decode_to_nothing(lossless):
    assert lossless.decode([lossless.vocab_size, *lossless.encode("a b"), lossless.vocab_size + 63]) == "a b"


def test_bytes_that_are_not_utf8_are_replaced(lossless):
    byte = {piece: i for i, piece in enumerate(lossless.pieces) if len(piece) == 1}
    start, rest = byte[b"\xf0"], byte[b"\x9f"]
    assert lossless.decode([start, rest]) == "\ufffd"
    assert lossless.decode([start, byte[b"a"], rest, byte[b"b"]]) == "\ufffda\ufffdb"
    stream = TextStream(lossless)
    assert (stream.add(start), stream.add(byte[b"a"]), stream.end()) == ("", "\ufffda", "")


def test_saved_is_loaded_with_the_same_fingerprint(every, tmp_path):
    for directory in (tmp_path / "first", tmp_path / "second"):
        directory.mkdir()
        every.save(directory)
        loaded = load_tokenizer(directory)
        assert has_tokenizer(directory)
        assert type(loaded) is type(every)
        assert loaded.fingerprint == every.fingerprint
        assert (loaded.bos_id, loaded.eos_id, loaded.pad_id) == (every.bos_id, every.eos_id, every.pad_id)
        assert loaded.special_tokens == every.special_tokens
        assert loaded.encode_batch(AWKWARD) == every.encode_batch(AWKWARD)
        every = loaded
    first, second = ({path.name: path.read_bytes() for path in (tmp_path / n).iterdir()} for n in ("first", "second"))
    assert first == second


def test_fingerprints_tell_tokenizers_apart(tmp_path_factory):
    prints = [tokenizer_of(kind, tmp_path_factory).fingerprint for kind in KINDS if kind != "gpt2"]
    assert len(set(prints)) == len(prints)
    assert all(len(found) == 64 for found in prints)


def test_transformers_gives_the_same_ids(every, kind, tmp_path):
    every.save(tmp_path)
    if kind == "imported_unigram":  # its scores are those of others, so there is no exact tokenizer.json
        assert not (tmp_path / "tokenizer.json").exists()
        return
    # As in an artifact: the model's own type must not decide on the tokenizer.
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    names = {token: i for token, i in every.special_tokens.items() if i not in (every.bos_id, None)}
    assert theirs.eos_token_id == every.eos_id
    assert theirs.pad_token_id == every.pad_id
    assert theirs.convert_tokens_to_ids(list(names)) == list(names.values())
    plain = theirs(AWKWARD, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert plain == every.encode_batch(AWKWARD)
    whole = theirs(AWKWARD, split_special_tokens=True)["input_ids"]
    assert whole == [every.encode_prompt(text) for text in AWKWARD]
    if kind in LOSSLESS:
        assert theirs.batch_decode(plain) == AWKWARD


def test_transformers_parses_special_tokens_unless_told_not_to(tmp_path_factory, tmp_path):
    ours = tokenizer_of("bpe", tmp_path_factory)
    ours.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    parsed = theirs("<|im_start|>a", add_special_tokens=False)["input_ids"]
    assert parsed == [ours.special_tokens["<|im_start|>"], *ours.encode("a")]


def _encode_in_child(texts, queue):
    queue.put([_open["byte_level"].encode_batch(texts, num_threads=n) for n in (1, None)])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning", "ignore:.*fork:RuntimeWarning")
def test_a_forked_child_neither_hangs_nor_complains(tmp_path_factory, capfd):
    tokenizer = tokenizer_of("byte_level", tmp_path_factory)
    texts = AWKWARD * 20
    expected = tokenizer.encode_batch(texts)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_encode_in_child, args=(texts, queue))
    child.start()
    try:
        assert queue.get(timeout=60) == [expected, expected]
    finally:
        child.kill()
        child.join()
    assert "parallelism" not in capfd.readouterr().err


def test_one_thread_means_one(tmp_path_factory, tmp_path):
    tokenizer_of("byte_level", tmp_path_factory).save(tmp_path)
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom shared_tokenizer.load import load_tokenizer\n"
        "tokenizer = load_tokenizer(Path(sys.argv[1]))\ntexts = ['some words to cut'] * 2000\n"
        "for n in (1, 2):\n    tokenizer.encode_batch(texts, num_threads=n)\n"
        "    print(len(os.listdir('/proc/self/task')))\n"
    )
    if not os.path.isdir("/proc/self/task"):
        pytest.skip("no /proc to count threads in")
    environment = {**os.environ, "RAYON_NUM_THREADS": "3", "OPENBLAS_NUM_THREADS": "1"}
    environment.pop("TOKENIZERS_PARALLELISM", None)
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    alone, together = map(int, done.stdout.split())
    assert together == alone + 3


def test_the_table_of_bytes_is_an_array(every):
    assert every.token_bytes.dtype == np.int32
    np.testing.assert_array_equal(every.token_bytes, [len(piece) for piece in every.pieces])
