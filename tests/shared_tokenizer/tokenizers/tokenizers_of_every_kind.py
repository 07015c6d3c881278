"""Small tokenizers of every kind, for the tests of their common properties."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from shared_tokenizer.load import load_tokenizer
from shared_tokenizer.tokenizers.json_tokenizer import JsonTokenizer
from shared_tokenizer.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from shared_tokenizer.tokenizers.tokenizer import Tokenizer
from shared_tokenizer.tokenizers.train import train_tokenizer

CORPUS = [
    "def add(first, second):\n    return first + second\n\n\nclass Point:\n    x_axis = 1.5 * y_axis  # the quick\n",
    "for i in range(10):\n\tif i % 2:\n\t\tprint(f'{i} <= {i ** 2}')\n        else = None;  a && b || !c  -> 'd'\r\n",
    "caf\u00e9 \u4f60\u597d\u4f60\u597d \U0001f600 \u0434\u0430 \u05e9\u05dc\u05d5\u05dd <s> </s> <unk> <|im_start|>\n",
    "aaaa aaa aa a bababab ab ba abab baba    aab  aabb <0x41> ABCDEF 0123456789 /> jkqvwxz\n",
] * 20
CHAT = ["<|im_start|>", "<|im_end|>"]
# Small alphabets repeat themselves, so that many ways to cut a text compete.
ALPHABETS = (
    "ab",
    " ",
    " a",
    " \n",
    "\t \r\n",
    "<s>x04 1",
    "aeinrst ,.:",
    "\u2581 a",
    "\u4f60\u597d \u0434\u0430\U0001f600e\u0301",
    "\x00\x1f\x7f\u2585a",
)


def imported_model(model_type: str = "bpe", vocab_size: int = 420, **options: Any) -> bytes:
    """Return a sentencepiece model with a dummy prefix, whose pieces may continue after newlines."""
    model = io.BytesIO()
    settings = {
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "hard_vocab_limit": False,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        model_type=model_type,
        vocab_size=vocab_size,
        **settings | options,
    )
    return model.getvalue()


def byte_level_library_tokenizer() -> tokenizers.Tokenizer:
    """Return a tokenizer that the tokenizers library has trained."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>", *CHAT], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def byte_level() -> JsonTokenizer:
    """Return a tokenizer like SmolLM2's."""
    flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False) | {"special": True}
    padding = {"__type": "AddedToken", "content": "<|im_end|>", **flags}
    config = {"eos_token": "<|im_end|>", "pad_token": padding, "add_bos_token": False}
    definition = byte_level_library_tokenizer().to_str().encode()
    return JsonTokenizer(definition, {"tokenizer_config.json": json.dumps(config).encode()})


def begins_with_bos() -> JsonTokenizer:
    """Return a tokenizer like Llama 3's: the post-processor puts a token before the text."""
    tokenizer = byte_level_library_tokenizer()
    tokenizer.add_special_tokens(["<|begin_of_text|>"])
    begin = ("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{begin[0]} $A", special_tokens=[begin])
    return JsonTokenizer(tokenizer.to_str().encode())


def marked_spaces() -> JsonTokenizer:
    """Return one like Llama 2's tokenizer.json: U+2581 for spaces, one before the text, byte fallback."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "\u2581",
        *"abcdef",
        "ab",
        "\u2581ab",
    ]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    model = models.BPE(vocabulary, [("a", "b"), ("\u2581", "ab")], byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return JsonTokenizer(tokenizer.to_str().encode())


def gpt2_files(directory: Path) -> Tokenizer:
    """Return a tokenizer of vocab.json and merges.txt, like GPT-2's."""
    model = json.loads(byte_level_library_tokenizer().to_str())["model"]
    (directory / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), "utf-8")
    return load_tokenizer(directory)


def word_pieces(directory: Path) -> Tokenizer:
    """Return a tokenizer of a bare vocab.json, like BERT's."""
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "def",
        "add",
        "##ing",
        "return",
        "a",
        "##b",
        "##d",
        "(",
        ")",
    ]
    (directory / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    return load_tokenizer(directory)


def words(directory: Path) -> Tokenizer:
    """Return a tokenizer of a bare word-level vocab.json."""
    pieces = ["<unk>", "<pad>", "<eos>", "def", "add", "return", "a", "b", "(", ")"]
    (directory / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    return load_tokenizer(directory)


LOSSLESS: dict[str, Callable[[], Tokenizer]] = {
    "bpe": lambda: train_tokenizer(CORPUS, 420, special_tokens=["<mine>"]),
    "unigram": lambda: train_tokenizer(CORPUS, 370, model_type="unigram"),
    "imported_bpe": lambda: SentencePieceTokenizer(imported_model()),
    "imported_unigram": lambda: SentencePieceTokenizer(imported_model("unigram")),
    "imported_without_bos": lambda: SentencePieceTokenizer(imported_model(bos_id=-1, add_dummy_prefix=False)),
    "byte_level": byte_level,
    "begins_with_bos": begins_with_bos,
}
FROM_FILES: dict[str, Callable[[Path], Tokenizer]] = {
    "gpt2": gpt2_files,
    "marked_spaces": lambda _: marked_spaces(),
    "word_pieces": word_pieces,
    "words": words,
}
KINDS = (*LOSSLESS, *FROM_FILES)
