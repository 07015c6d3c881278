"""A sentencepiece model -> the tokenizer.json of the tokenizers library with the same ids."""

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

# sentencepiece adds scores in 32 bits, tokenizers in 64. The sums of multiples of this step are exact in both.
UNIGRAM_STEP = 1 / 64
# A lower score than that of any sequence of ordinary pieces.
NEVER_CHOSEN = -1e6
# No piece continues after a newline, so a cut there changes no id; short words are faster in the library.
LINES = {"type": "Split", "pattern": {"String": "\n"}, "behavior": "MergedWithPrevious", "invert": False}


def to_tokenizer_json(model: bytes, bos_id: int | None) -> str | None:
    """Return the same tokenizer as a tokenizer.json, None where the ids would differ.

    `bos_id` begins every text. The ids of every text are equal if the caller keeps spelled-out special tokens as text
    (`encode_special_tokens` in tokenizers, `split_special_tokens` in transformers). The pieces hold plain spaces, so a
    U+2581 in a text is an unknown character, encoded as its bytes.

    The ids would differ for a model that changes characters or strips spaces, lacks bytes, or has user-defined or
    unused pieces, a piece with a character that is no piece, or two BPE pieces of the same score. A unigram model
    needs scores that are multiples of UNIGRAM_STEP, and pieces for the characters of its special tokens.
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
    """Return the entry of tokenizer.json for a special token, or for one that is matched before the model runs."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": content, **flags, "special": special}


def begin_with(content: str, token_id: int) -> dict[str, Any]:
    """Return the post-processor of tokenizer.json that puts a token before every text."""
    begin = {"SpecialToken": {"id": content, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [begin, first],
        "pair": [begin, first, begin, second],
        "special_tokens": {content: {"id": content, "ids": [token_id], "tokens": [content]}},
    }


def _describe_model(model: Any, texts: Sequence[str]) -> dict[str, Any] | None:
    """Return the `model` of tokenizer.json, None where the ids would differ."""
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
    """Return a BPE model whose merges are in the order of the scores."""
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
    """Return all pairs of pieces that form a piece: sentencepiece may merge any of them."""
    pairs = [(text[:i], text[i:]) for i in range(len(text) - 1, 0, -1)]
    return [(left, right) for left, right in pairs if left in known and right in known]


def _describe_unigram(texts: Sequence[str], scores: Mapping[str, float], unknown: int) -> dict[str, Any] | None:
    # The library matches every entry in a text, special tokens and <0x41> too. Pieces for all their characters give it
    # a path with a better score.
    spelled = set("".join(text for text in texts if text not in scores))
    if not spelled <= scores.keys() or any(score % UNIGRAM_STEP for score in scores.values()):
        return None
    vocabulary = [(text, scores.get(text, NEVER_CHOSEN)) for text in texts]
    return {"type": "Unigram", "unk_id": unknown, "byte_fallback": True, "vocab": vocabulary}
