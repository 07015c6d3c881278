"""A bare vocab.json, with or without its merges.txt -> the tokenizer.json of the same tokenizer."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from shared_tokenizer.tokenizers.json_definition import check_ids, check_merges
from shared_tokenizer.tokenizers.known_tokens import SPECIAL_NAMES, UNKNOWN_NAMES
from shared_tokenizer.tokenizers.sentencepiece_model import SPACE_MARKER
from shared_tokenizer.tokenizers.sentencepiece_to_json import added_token
from shared_tokenizer.tokenizers.tokenizer_files import MERGES_FILE, VOCABULARY_FILE, parse_json_object

BYTE_LEVEL_SPACE = "\u0120"  # stands for a space in GPT-2's alphabet of bytes
CONTINUES = "##"
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def definition_of_vocabulary(
    vocabulary: bytes, merges: bytes | None, named: Iterable[str] = (), lowercase: bool | None = None
) -> bytes:
    """Return a tokenizer.json: byte-level BPE with merges; without them WordPiece or word level, by the pieces.

    Tokens with a well-known name and those of `named` become special. `lowercase` True lets a WordPiece tokenizer
    lower the case of a text; None does so if no piece has a capital. Raises ValueError where the pieces fit no kind.
    """
    ids = parse_json_object(VOCABULARY_FILE, vocabulary)
    if not ids:
        raise ValueError(f"{VOCABULARY_FILE}: found no tokens, expected an object of tokens and their ids")
    check_ids(VOCABULARY_FILE, ids.items())
    special = sorted({*SPECIAL_NAMES, *named} & ids.keys(), key=lambda token: ids[token])
    words = [token for token in ids if token not in special]
    parts = _bpe(ids, merges) if merges is not None else _of_words(ids, words, lowercase)
    definition = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(ids[token], token) for token in special],
        "normalizer": None,
        "post_processor": None,
    }
    return json.dumps(definition | parts, ensure_ascii=False, indent=1).encode("utf-8")


def _bpe(ids: Mapping[str, int], merges: bytes) -> dict[str, Any]:
    pairs = _read_merges(merges)
    if any(token.endswith("</w>") for token in ids):
        raise ValueError(
            f"{VOCABULARY_FILE}: found pieces that end with </w>, expected GPT-2's byte-level BPE; save the tokenizer "
            "with transformers to get its tokenizer.json"
        )
    check_merges(dict(ids), pairs)
    model = {"type": "BPE", "vocab": ids, "merges": pairs}
    return {"pre_tokenizer": BYTE_LEVEL, "decoder": BYTE_LEVEL, "model": model}


def _read_merges(content: bytes) -> list[list[str]]:
    try:
        lines = content.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{MERGES_FILE}: not UTF-8 at byte {error.start}") from error
    pairs = []
    for number, line in enumerate(lines, 1):
        line = line.removesuffix("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        pairs.append(line.split(" "))
        if len(pairs[-1]) != 2:
            raise ValueError(f"{MERGES_FILE}: line {number}: found {line!r}, expected two pieces and one space")
    return pairs


def _of_words(ids: Mapping[str, int], words: list[str], lowercase: bool | None) -> dict[str, Any]:
    """Return the parts of a tokenizer without merges. Raises ValueError where the pieces look like BPE."""
    unknown = next((name for name in UNKNOWN_NAMES if name in ids), None)
    if any(len(word) > 1 and word[0] in (BYTE_LEVEL_SPACE, SPACE_MARKER) for word in words):
        raise ValueError(
            f"{VOCABULARY_FILE}: found pieces of a BPE tokenizer (such as {words[-1]!r}) and no {MERGES_FILE} next to "
            "it, which a BPE tokenizer needs; add that file, or the tokenizer.json or tokenizer.model"
        )
    if unknown is None:
        raise ValueError(
            f"{VOCABULARY_FILE}: found neither a {MERGES_FILE} next to it nor an unknown token "
            f"({', '.join(UNKNOWN_NAMES)}), expected one of them; add the {MERGES_FILE} of a BPE vocabulary"
        )
    if any(word.startswith(CONTINUES) and word != CONTINUES for word in words):
        return _word_piece(ids, words, unknown, lowercase)
    is_split_at_marks = all(re.fullmatch(r"\w+|[^\w\s]+", word) for word in words)
    return {
        "pre_tokenizer": {"type": "Whitespace" if is_split_at_marks else "WhitespaceSplit"},
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": ids, "unk_token": unknown},
    }


def _word_piece(ids: Mapping[str, int], words: list[str], unknown: str, lowercase: bool | None) -> dict[str, Any]:
    lowers = all(word == word.lower() for word in words) if lowercase is None else lowercase
    normalizer = {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": lowers}
    return {
        "normalizer": {"type": "BertNormalizer", **normalizer},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": CONTINUES, "cleanup": False},
        "model": {
            "type": "WordPiece",
            "vocab": ids,
            "unk_token": unknown,
            "continuing_subword_prefix": CONTINUES,
            "max_input_chars_per_word": 100,
        },
    }
