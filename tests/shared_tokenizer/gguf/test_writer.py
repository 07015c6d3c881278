"""Tokenizer metadata for llama.cpp: written and read again it is the same tokenizer, or it is refused."""

import json
import unicodedata
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import normalizers, pre_tokenizers

from shared_tokenizer.chat.formats import CHATML, LLAMA_3
from shared_tokenizer.chat.messages import encode_chat, stop_ids
from shared_tokenizer.chat.parse import parse_messages
from shared_tokenizer.chat.template import chat_template, read_chat_template, write_chat_template
from shared_tokenizer.gguf.reader import gguf_tokenizer
from shared_tokenizer.gguf.writer import gguf_tokenizer_metadata
from shared_tokenizer.load import load_tokenizer
from shared_tokenizer.tokenizers.json_tokenizer import JsonTokenizer
from shared_tokenizer.tokenizers.sentencepiece_model import BYTE_PIECES, SPACE_MARKER
from shared_tokenizer.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from shared_tokenizer.tokenizers.tokenizer import Tokenizer
from shared_tokenizer.tokenizers.train import train_tokenizer
from tests.shared_tokenizer.tokenizers.tokenizers_of_every_kind import (
    ALPHABETS,
    CORPUS,
    begins_with_bos,
    byte_level,
    byte_level_library_tokenizer,
    imported_model,
    marked_spaces,
    word_pieces,
    words,
)

TEXTS = st.one_of(st.text(), *(st.text(alphabet, max_size=60) for alphabet in ALPHABETS))
CONVERSATION = parse_messages(
    [
        {"role": "system", "content": "be <|im_end|> brief"},
        {"role": "user", "content": "add 12 and 345 \u4f60\u597d"},
        {"role": "assistant", "content": "  357\n"},
    ]
)


def single_digits() -> JsonTokenizer:
    """Return a tokenizer with the pre-tokenizer of SmolLM2."""
    tokenizer = byte_level_library_tokenizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return JsonTokenizer(tokenizer.to_str().encode())


def three_digits() -> JsonTokenizer:
    """Return a tokenizer with the pre-tokenizer of Llama 3."""
    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )
    tokenizer = byte_level_library_tokenizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    return changed(tokenizer, lambda definition: definition["model"].update(ignore_merges=True))


def qwen2() -> JsonTokenizer:
    """Return a tokenizer with the normalizer and the pre-tokenizer of Qwen2 and Qwen3."""
    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )
    tokenizer = byte_level_library_tokenizer()
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    return JsonTokenizer(tokenizer.to_str().encode())


def changed(tokenizer: tokenizers.Tokenizer, change: Callable[[dict[str, Any]], object]) -> JsonTokenizer:
    definition = json.loads(tokenizer.to_str())
    change(definition)
    return JsonTokenizer(json.dumps(definition).encode())


def without_bos() -> SentencePieceTokenizer:
    return SentencePieceTokenizer(imported_model(), {"tokenizer_config.json": b'{"add_bos_token": false}'})


SENTENCEPIECE: dict[str, Callable[[], Tokenizer]] = {
    "trained": lambda: train_tokenizer(CORPUS, 420, special_tokens=["<mine>"]),
    "dummy_prefix": lambda: SentencePieceTokenizer(imported_model()),
    "no_bos": lambda: SentencePieceTokenizer(imported_model(bos_id=-1, add_dummy_prefix=False)),
    "told_no_bos": without_bos,
}
BYTE_LEVEL: dict[str, Callable[[], Tokenizer]] = {
    "gpt-2": byte_level,
    "gpt-2_with_bos": begins_with_bos,
    "smollm": single_digits,
    "llama-bpe": three_digits,
    "qwen2": qwen2,
}


def metadata_of(directory: Path, vocab_size: int | None = None) -> dict[str, Any]:
    return gguf_tokenizer_metadata(load_tokenizer(directory), directory, vocab_size)


def saved(tokenizer: Tokenizer, directory: Path) -> Path:
    tokenizer.save(directory)
    write_chat_template(directory, CHATML, tokenizer)
    return directory


@pytest.fixture(scope="module", params=[*SENTENCEPIECE, *BYTE_LEVEL])
def original(request, tmp_path_factory) -> tuple[Tokenizer, Path]:
    tokenizer = (SENTENCEPIECE | BYTE_LEVEL)[request.param]()
    return tokenizer, saved(tokenizer, tmp_path_factory.mktemp("original"))


@pytest.fixture(scope="module")
def rebuilt(original, tmp_path_factory) -> tuple[Tokenizer, Path]:
    """Return the tokenizer that was written as metadata, read, saved as files, and read again."""
    made = gguf_tokenizer(metadata_of(original[1], vocab_size=700))
    assert made is not None
    directory = tmp_path_factory.mktemp("rebuilt")
    made.save(directory)
    return load_tokenizer(directory), directory


@given(text=TEXTS)
@settings(max_examples=150)
def test_ids_are_the_same_for_any_text(original, rebuilt, text):
    ids = original[0].encode(text)
    assert rebuilt[0].encode(text) == ids
    assert rebuilt[0].encode_prompt(text) == original[0].encode_prompt(text)
    is_normalized = isinstance(rebuilt[0], JsonTokenizer) and rebuilt[0].definition.parts["normalizer"] is not None
    assert rebuilt[0].decode(ids) == (unicodedata.normalize("NFC", text) if is_normalized else text)


def test_long_texts_have_the_same_ids(original, rebuilt):
    text = "".join(CORPUS) + "".join(line[::-1] for line in CORPUS)
    assert rebuilt[0].encode(text) == original[0].encode(text)
    assert rebuilt[0].encode_batch(CORPUS) == original[0].encode_batch(CORPUS)


def test_special_tokens_are_the_same(original, rebuilt):
    for name in ("vocab_size", "bos_id", "eos_id", "pad_id", "start_ids", "special_tokens", "strips_first_space"):
        assert getattr(rebuilt[0], name) == getattr(original[0], name), name
    assert rebuilt[0].pieces == original[0].pieces


def test_a_chat_is_the_same(original, rebuilt):
    assert read_chat_template(rebuilt[1]) == chat_template(CHATML, original[0])
    if "<|im_start|>" in original[0].special_tokens:
        found, expected = (encode_chat(CONVERSATION, tokenizer, CHATML) for tokenizer in (rebuilt[0], original[0]))
        assert found == expected


@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_byte_level_metadata(name, tmp_path):
    tokenizer = BYTE_LEVEL[name]()
    found = metadata_of(saved(tokenizer, tmp_path))
    assert found["tokenizer.ggml.model"] == "gpt2"
    assert found["tokenizer.ggml.pre"] == name.removesuffix("_with_bos")
    assert found["tokenizer.ggml.add_bos_token"] is (tokenizer.bos_id is not None)
    assert found["tokenizer.ggml.merges"][0].count(" ") == 1
    types = dict(zip(found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"], strict=True))
    assert types["<|endoftext|>"] == types["<|im_end|>"] == 3
    assert types["a"] == 1


def test_sentencepiece_metadata(tmp_path):
    found = metadata_of(saved(train_tokenizer(CORPUS, 420), tmp_path), vocab_size=422)
    tokens, types = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    assert (tokens[:4], types[:4]) == (["<unk>", "<s>", "<|endoftext|>", "<pad>"], [2, 3, 3, 3])
    assert (tokens[20], types[20], types[275]) == ("<0x00>", 6, 6)
    assert (tokens[276].startswith(SPACE_MARKER) or len(tokens[276]) == 2) and types[276] == 1
    assert (tokens[420:], types[420:]) == (["[PAD420]", "[PAD421]"], [5, 5])
    assert len(found["tokenizer.ggml.scores"]) == 422
    values = {key.removeprefix("tokenizer.ggml."): value for key, value in found.items()}
    assert (values["model"], values["pre"]) == ("llama", "default")
    assert values["bos_token_id"] == 1 and values["eos_token_id"] == 2
    assert values["unknown_token_id"] == 0 and values["padding_token_id"] == 3
    assert values["add_bos_token"] is True and values["add_space_prefix"] is False


@pytest.mark.parametrize("make", [lambda: train_tokenizer(CORPUS, 420), single_digits], ids=["trained", "smollm"])
def test_a_chat_model_says_where_an_answer_ends(make, tmp_path):
    tokenizer = make()
    found = metadata_of(saved(tokenizer, tmp_path))
    ends = {found["tokenizer.ggml.eos_token_id"], found["tokenizer.ggml.eot_token_id"]}
    assert ends == set(stop_ids(tokenizer, CHATML)) and len(ends) == 2
    rebuilt = gguf_tokenizer(found)
    assert rebuilt is not None
    rebuilt.save(tmp_path)
    content = json.loads((tmp_path / "generation_config.json").read_text())
    assert content["eos_token_id"] == [found["tokenizer.ggml.eos_token_id"], found["tokenizer.ggml.eot_token_id"]]


@pytest.mark.parametrize("template", [None, "{{ messages[0].secret }}", LLAMA_3.template])
def test_where_the_format_is_unknown_or_has_other_tokens_nothing_is_said_of_it(template, tmp_path):
    train_tokenizer(CORPUS, 420).save(tmp_path)
    if template is not None:
        (tmp_path / "chat_template.jinja").write_text(template)
    found = metadata_of(tmp_path)
    assert "tokenizer.ggml.eot_token_id" not in found and found.get("tokenizer.chat_template") == template


def test_without_a_begin_token_the_end_token_is_named(tmp_path):
    found = metadata_of(saved(SENTENCEPIECE["no_bos"](), tmp_path))
    assert found["tokenizer.ggml.bos_token_id"] == found["tokenizer.ggml.eos_token_id"]
    assert found["tokenizer.ggml.add_bos_token"] is False


def llama_cpp_ids(metadata: Mapping[str, Any], text: str) -> list[int]:
    """llama.cpp on a sentencepiece vocabulary: the two neighbours that make the best token become one, while any do."""
    tokens = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    prefix = " " if metadata["tokenizer.ggml.add_space_prefix"] and text else ""
    symbols = list((prefix + text).replace(" ", SPACE_MARKER))
    while True:
        pairs = [left + right for left, right in pairwise(symbols)]
        scores = {i: metadata["tokenizer.ggml.scores"][tokens[pair]] for i, pair in enumerate(pairs) if pair in tokens}
        if not scores:
            break
        best = max(scores, key=lambda i: scores[i])  # the first of equals
        symbols[best : best + 2] = [pairs[best]]
    written = [[symbol] if symbol in tokens else [f"<0x{byte:02X}>" for byte in symbol.encode()] for symbol in symbols]
    return [tokens[token] for parts in written for token in parts]


@pytest.fixture(scope="module", params=["trained", "dummy_prefix"])
def sentencepiece(request, tmp_path_factory) -> tuple[Tokenizer, Mapping[str, Any]]:
    tokenizer = SENTENCEPIECE[request.param]()
    return tokenizer, metadata_of(saved(tokenizer, tmp_path_factory.mktemp("spm")), vocab_size=430)


@given(text=TEXTS)
@settings(max_examples=150)
def test_llama_cpp_finds_the_same_ids(sentencepiece, text):
    tokenizer, metadata = sentencepiece
    assume(not any(token in text for token in (SPACE_MARKER, *tokenizer.special_tokens, *BYTE_PIECES)))
    assert llama_cpp_ids(metadata, text) == tokenizer.encode(text)


def test_llama_cpp_finds_the_same_ids_in_code(sentencepiece):
    tokenizer, metadata = sentencepiece
    for text in CORPUS[:2]:
        assert llama_cpp_ids(metadata, text) == tokenizer.encode(text)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"model_type": "unigram"}, "not BPE"),
        ({"model_type": "word"}, "not BPE"),
        ({"normalization_rule_name": "nmt_nfkc"}, "changes characters"),
        ({"remove_extra_whitespaces": True}, "removes spaces"),
        ({"treat_whitespace_as_suffix": True}, "spaces end words"),
        ({"byte_fallback": False}, "lacks bytes"),
        ({"user_defined_symbols": ["<think>"]}, "user-defined"),
    ],
    ids=str,
)
def test_a_sentencepiece_model_that_llama_cpp_cannot_run_is_refused(options, reason, tmp_path):
    SentencePieceTokenizer(imported_model(**options)).save(tmp_path)
    with pytest.raises(ValueError, match=rf"{tmp_path}: llama.cpp .*{reason}.* without a tokenizer"):
        metadata_of(tmp_path)


def with_added(*tokens: tokenizers.AddedToken) -> JsonTokenizer:
    tokenizer = byte_level_library_tokenizer()
    tokenizer.add_tokens(list(tokens))
    return JsonTokenizer(tokenizer.to_str().encode())


def with_normalizer(normalizer: normalizers.Normalizer) -> JsonTokenizer:
    tokenizer = byte_level_library_tokenizer()
    tokenizer.normalizer = normalizer
    return JsonTokenizer(tokenizer.to_str().encode())


def with_model(**parts: Any) -> JsonTokenizer:
    return changed(byte_level_library_tokenizer(), lambda definition: definition["model"].update(parts))


def prefix_space() -> JsonTokenizer:
    tokenizer = byte_level_library_tokenizer()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return JsonTokenizer(tokenizer.to_str().encode())


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (words, "WordLevel, not BPE"),
        (word_pieces, "WordPiece, not BPE"),
        (lambda _: marked_spaces(), "changes characters"),
        (lambda _: with_normalizer(normalizers.NFKC()), "changes characters"),
        (lambda _: with_normalizer(normalizers.NFC()), "pre-tokenizer, with its normalizer, is none of gpt-2, smollm"),
        (lambda _: with_model(byte_fallback=True), "pieces for unknown characters"),
        (lambda _: with_model(end_of_word_suffix="</w>"), "where words end"),
        (lambda _: with_model(ignore_merges=True), "pre-tokenizer, with its .* is none of gpt-2, smollm"),
        (lambda _: prefix_space(), "pre-tokenizer, with its normalizer, is none of"),
        (lambda _: with_added(tokenizers.AddedToken("<think>", lstrip=True)), "depend on the text around"),
        (lambda _: with_added("<a>b", "b<c>"), "overlap"),
        (lambda _: with_added("[PAD401]", "[PAD405]"), "spelled like"),
    ],
)
def test_a_tokenizer_json_that_llama_cpp_cannot_run_is_refused(make, reason, tmp_path):
    (tmp_path / "made").mkdir()
    make(tmp_path).save(tmp_path / "made")
    with pytest.raises(ValueError, match=rf"llama.cpp .*{reason}.* without a tokenizer"):
        metadata_of(tmp_path / "made", vocab_size=410)


def test_added_tokens_are_cut_out_of_the_text(tmp_path):
    tokenizer = with_added("<think>", "</think>")
    tokenizer.save(tmp_path)
    metadata = metadata_of(tmp_path)
    assert metadata["tokenizer.ggml.token_type"][-2:] == [4, 4]
    rebuilt = gguf_tokenizer(metadata)
    assert rebuilt is not None
    for text in ("<think>1 < 2</think>", "a<think><think>", "<think", "</think><|im_end|>"):
        assert rebuilt.encode(text) == tokenizer.encode(text)
    assert rebuilt.decode(tokenizer.encode("<think>")) == "<think>"


def test_ids_without_a_token_are_filled(tmp_path):
    tokenizer = changed(byte_level_library_tokenizer(), lambda parts: parts["model"]["vocab"].update({"new": 405}))
    tokenizer.save(tmp_path)
    metadata = metadata_of(tmp_path)
    assert metadata["tokenizer.ggml.tokens"][400:] == [*(f"[PAD{i}]" for i in range(400, 405)), "new"]
    assert metadata["tokenizer.ggml.token_type"][400:] == [5] * 5 + [1]
    rebuilt = gguf_tokenizer(metadata)
    assert rebuilt is not None
    assert (rebuilt.vocab_size, rebuilt.pieces[404], rebuilt.pieces[405]) == (406, b"", b"new")


def test_a_model_with_fewer_ids_than_the_tokenizer_is_refused(tmp_path):
    byte_level().save(tmp_path)
    with pytest.raises(ValueError, match="vocab_size: found 399, expected at least the 400 of the tokenizer"):
        metadata_of(tmp_path, vocab_size=399)


def test_all_ids_that_end_a_text_are_named(tmp_path):
    tokenizer = train_tokenizer(CORPUS, 420)
    tokenizer.save(tmp_path)
    special = tokenizer.special_tokens
    others = [special[token] for token in ("<|im_end|>", "<file_sep>")]
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [*others, tokenizer.eos_id]}))
    found = metadata_of(tmp_path)
    assert [found[f"tokenizer.ggml.{role}_token_id"] for role in ("eot", "eom")] == others
    rebuilt = gguf_tokenizer(found)
    assert rebuilt is not None and list(rebuilt.stop_ids) == [tokenizer.eos_id, *others]
