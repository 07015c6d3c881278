"""A sentencepiece model written as the tokenizer.json of the tokenizers library."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from shared_tokenizer.tokenizers.sentencepiece_model import (
    BPE,
    SPECIAL_KINDS,
    UNIGRAM,
    PieceKind,
    ends_lines,
    parse_model,
    peculiarity,
    plain_pieces,
)

# sentencepiece adds scores in 32 bits, tokenizers in 64: of multiples of this, both get the same sums.
UNIGRAM_STEP = 1 / 64
# Worse than any way to write the same characters with ordinary pieces.
NEVER_CHOSEN = -1e6
# No piece goes on after a newline, so a cut there changes no id and keeps the library's words short.
LINES = {"type": "Split", "pattern": {"String": "\n"}, "behavior": "MergedWithPrevious", "invert": False}


def to_tokenizer_json(model: bytes, bos_id: int | None) -> str | None:
    """The same tokenizer as a tokenizer.json that begins a text with `bos_id`, None where it could not be the same.

    The ids are equal for every text if special tokens written in it are to stay text (`encode_special_tokens` in
    tokenizers, `split_special_tokens` in transformers). Spaces stand in the pieces as they are: a U+2581 of the
    text is then unknown, and written with its own bytes.

    It cannot be the same where the model changes characters or strips spaces, lacks bytes, has user-defined or
    unused pieces, a piece with a character that is no piece, or two BPE pieces of one score. A unigram model needs
    scores that are multiples of UNIGRAM_STEP and pieces for the characters of its special tokens.
    """
    parsed = parse_model(model)
    texts = plain_pieces(parsed)
    described = None if peculiarity(parsed) else _describe_model(parsed, texts)
    if described is None:
        return None
    special = [i for i, piece in enumerate(parsed.pieces) if piece.type in SPECIAL_KINDS]
    has_prefix = parsed.normalizer_spec.add_dummy_prefix
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if has_prefix else []
    definition = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(i, texts[i]) for i in special],
        "normalizer": {"type": "Prepend", "prepend": " "} if has_prefix else None,
        "pre_tokenizer": LINES if ends_lines(parsed) else None,
        "post_processor": None if bos_id is None else begin_with(texts[bos_id], bos_id),
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
        "model": described,
    }
    return json.dumps(definition, ensure_ascii=False, indent=1)


def added_token(token_id: int, content: str, *, special: bool = True) -> dict[str, Any]:
    """How tokenizer.json writes a special token, or one that is cut out of a text before all else."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": content, **flags, "special": special}


def begin_with(content: str, token_id: int) -> dict[str, Any]:
    """The post-processor by which a text begins with a token."""
    begin = {"SpecialToken": {"id": content, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [begin, first],
        "pair": [begin, first, begin, second],
        "special_tokens": {content: {"id": content, "ids": [token_id], "tokens": [content]}},
    }


def _describe_model(model: Any, texts: Sequence[str]) -> dict[str, Any] | None:
    pieces = list(zip(texts, model.pieces, strict=True))
    scores = {text: piece.score for text, piece in pieces if piece.type == PieceKind.NORMAL}
    if not set("".join(scores)) <= scores.keys():
        return None
    unknown = next(i for i, piece in enumerate(model.pieces) if piece.type == PieceKind.UNKNOWN)
    if model.trainer_spec.model_type == BPE:
        return _describe_bpe(texts, scores, texts[unknown])
    if model.trainer_spec.model_type == UNIGRAM:
        return _describe_unigram(texts, scores, unknown)
    return None


def _describe_bpe(texts: Sequence[str], scores: Mapping[str, float], unknown: str) -> dict[str, Any] | None:
    ranked = sorted((text for text in scores if len(text) > 1), key=lambda text: -scores[text])
    if len({scores[text] for text in ranked}) < len(ranked):
        return None
    return {
        "type": "BPE",
        "unk_token": unknown,
        "fuse_unk": True,
        "byte_fallback": True,
        "vocab": {text: i for i, text in enumerate(texts)},
        "merges": [pair for text in ranked for pair in _splits(text, scores)],
    }


def _splits(text: str, known: Mapping[str, float]) -> list[tuple[str, str]]:
    """The pairs of pieces that make up a piece: sentencepiece merges any of them."""
    pairs = [(text[:i], text[i:]) for i in range(len(text) - 1, 0, -1)]
    return [(left, right) for left, right in pairs if left in known and right in known]


def _describe_unigram(texts: Sequence[str], scores: Mapping[str, float], unknown: int) -> dict[str, Any] | None:
    # The library finds every entry in the text, special tokens and <0x41> too; it must have a better way.
    spelled = set("".join(text for text in texts if text not in scores))
    if not spelled <= scores.keys() or any(score % UNIGRAM_STEP for score in scores.values()):
        return None
    vocabulary = [(text, scores.get(text, NEVER_CHOSEN)) for text in texts]
    return {"type": "Unigram", "unk_id": unknown, "byte_fallback": True, "vocab": vocabulary}
