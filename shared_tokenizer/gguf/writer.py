"""Tokenizer -> the metadata of a GGUF file, for the same ids in llama.cpp."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import permutations
from pathlib import Path
from typing import Any

from shared_tokenizer.chat.messages import stop_ids
from shared_tokenizer.chat.template import read_chat_format, read_chat_template
from shared_tokenizer.gguf.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer
from shared_tokenizer.gguf.reader import (
    ADD_BOS_KEY,
    BYTE_LEVEL_BPE,
    EOM_KEY,
    EOT_KEY,
    MERGES_KEY,
    MODEL_KEY,
    PRE_KEY,
    ROLE_KEYS,
    SCORES_KEY,
    SENTENCEPIECE,
    SPACE_PREFIX_KEY,
    TEMPLATE_KEY,
    TOKENS_KEY,
    TYPES_KEY,
)
from shared_tokenizer.tokenizers.json_definition import JsonDefinition, open_definition
from shared_tokenizer.tokenizers.json_pieces import missing_bytes
from shared_tokenizer.tokenizers.json_tokenizer import JsonTokenizer
from shared_tokenizer.tokenizers.named_tokens import NamedTokens
from shared_tokenizer.tokenizers.sentencepiece_model import BPE, PieceKind, peculiarity
from shared_tokenizer.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from shared_tokenizer.tokenizers.tokenizer import Tokenizer
from shared_tokenizer.tokenizers.tokenizer_files import read_files

# Score of the fillers: ids that the model has and the tokenizer has not. No text is encoded as a filler.
FILLER_SCORE = -10000.0


def gguf_tokenizer_metadata(tokenizer: Tokenizer, directory: Path, vocab_size: int | None = None) -> dict[str, Any]:
    """Return the metadata of the tokenizer of a directory, with its chat template.

    The caller writes single numbers as UINT32, and those in arrays as INT32 and FLOAT32. `vocab_size` is that of the
    model: ids beyond the tokenizer's become fillers. The ids of a text are the same in llama.cpp, with the exceptions
    of `gguf_tokenizer`. Raises ValueError where llama.cpp cannot produce the same ids.
    """
    try:
        if isinstance(tokenizer, SentencePieceTokenizer):
            found = _sentencepiece(tokenizer)
        else:
            assert isinstance(tokenizer, JsonTokenizer)
            found = _byte_level(tokenizer, NamedTokens(read_files(directory)))
        found = _filled(found, vocab_size)
    except ValueError as error:
        raise ValueError(f"{directory}: {error}") from error
    template = read_chat_template(directory)
    ends = dict(zip((EOT_KEY, EOM_KEY), other_stop_ids(directory, tokenizer), strict=False))
    return found | ends | ({} if template is None else {TEMPLATE_KEY: template})


def other_stop_ids(directory: Path, tokenizer: Tokenizer) -> list[int]:
    """Return the ids that end an answer or a text, without the tokenizer's own; that of a chat's turn is the first.

    A GGUF has keys for the first two.
    """
    try:
        chat_format = read_chat_format(directory)
        ends = [] if chat_format is None else stop_ids(tokenizer, chat_format)
    except ValueError:  # an unknown template is written as it is
        ends = []
    return [end for end in dict.fromkeys((*ends, *tokenizer.stop_ids)) if end != tokenizer.eos_id]


def _sentencepiece(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    model = tokenizer.model
    reason = peculiarity(model)
    if model.trainer_spec.model_type != BPE:
        reason = "it is not BPE, the only kind for which llama.cpp encodes unknown characters as bytes"
    if reason is not None:
        raise _impossible(reason)
    special = tokenizer.special_tokens
    roles = {
        "bos": special.get(model.trainer_spec.bos_piece),
        "eos": tokenizer.eos_id,
        "unk": special.get(model.trainer_spec.unk_piece),
        "pad": tokenizer.pad_id,
    }
    return {
        MODEL_KEY: SENTENCEPIECE,
        PRE_KEY: "default",
        TOKENS_KEY: [piece.piece for piece in model.pieces],
        SCORES_KEY: [piece.score for piece in model.pieces],
        TYPES_KEY: [int(piece.type) for piece in model.pieces],
        SPACE_PREFIX_KEY: tokenizer.strips_first_space,
        **_special_ids(roles, tokenizer.bos_id),
    }


def _byte_level(tokenizer: JsonTokenizer, named: NamedTokens) -> dict[str, Any]:
    definition = tokenizer.definition
    reason = _obstacle(definition)
    if reason is not None:
        raise _impossible(reason)
    pre_tokenizer = _pre_tokenizer(definition)
    tokens = {i: token for token, i in definition.ids.items()}
    special = tokenizer.special_tokens.values()
    added = definition.added.values()
    kinds = dict.fromkeys(tokens, PieceKind.NORMAL)
    kinds |= dict.fromkeys(added, PieceKind.USER_DEFINED) | dict.fromkeys(special, PieceKind.CONTROL)
    roles = {
        "bos": named.find("bos", definition.ids) if tokenizer.bos_id is None else tokenizer.bos_id,
        "eos": tokenizer.eos_id,
        "unk": named.find("unk", definition.ids),
        "pad": tokenizer.pad_id,
    }
    return {
        MODEL_KEY: BYTE_LEVEL_BPE,
        PRE_KEY: pre_tokenizer.name,
        TOKENS_KEY: [tokens.get(i, _filler(i)) for i in range(tokenizer.vocab_size)],
        TYPES_KEY: [int(kinds.get(i, PieceKind.UNUSED)) for i in range(tokenizer.vocab_size)],
        MERGES_KEY: [" ".join(pair) for pair in definition.merges],
        SPACE_PREFIX_KEY: False,
        **_special_ids(roles, tokenizer.bos_id),
    }


def _obstacle(definition: JsonDefinition) -> str | None:
    """Return the first feature that llama.cpp's byte-level BPE lacks, in words; None where it has all."""
    model, merges = definition.model, definition.merges
    added = [token for token in definition.parts.get("added_tokens") or [] if token["content"] in definition.added]
    found = {
        f"it is {definition.model_type}, not BPE": definition.model_type != "BPE",
        "it changes characters": definition.parts.get("normalizer")
        not in [None, *(k.normalizer for k in PRE_TOKENIZERS)],
        "it has its own pieces for unknown characters": model.get("byte_fallback")
        or (model.get("unk_token") is not None and missing_bytes(definition)),
        "it marks where words end": model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"),
        "it has a merge twice": len(set(map(tuple, merges))) < len(merges),
        "it merges pieces with spaces": any(" " in side for pair in merges for side in pair),
        "it has added tokens that depend on the text around them": any(
            token.get(flag) for token in added for flag in ("single_word", "lstrip", "rstrip")
        ),
        "it has added tokens that overlap": _overlap(definition.added),
    }
    return next((feature for feature, is_present in found.items() if is_present), None)


def _overlap(tokens: Iterable[str]) -> bool:
    """Return True if the end of a token is the start of another.

    In such a text llama.cpp takes the longest token first, the tokenizers library the first one.
    """
    return any(
        first.endswith(second[:size])
        for first, second in permutations(tokens, 2)
        for size in range(1, min(len(first), len(second)))
    )


def _pre_tokenizer(definition: JsonDefinition) -> PreTokenizer:
    """Return the pre-tokenizer of llama.cpp that cuts a text in the same way. Raises ValueError where none does."""
    part = open_definition(definition).pre_tokenizer
    steps = None if part is None else json.loads(part.__getstate__())  # with all defaults
    keeps_whole_words, normalizer = bool(definition.model.get("ignore_merges")), definition.parts.get("normalizer")
    for known in PRE_TOKENIZERS:
        has_steps = _without_offsets(known.steps) == _without_offsets(steps)
        if has_steps and (known.keeps_whole_words, known.normalizer) == (keeps_whole_words, normalizer):
            return known
    names = ", ".join(known.name for known in PRE_TOKENIZERS)
    raise _impossible(f"its pre-tokenizer, with its normalizer, is none of {names}")


def _without_offsets(steps: Any) -> Any:
    """Return a pre-tokenizer without `trim_offsets`, which changes no id."""
    if isinstance(steps, list):
        return [_without_offsets(step) for step in steps]
    if isinstance(steps, Mapping):
        return {name: _without_offsets(value) for name, value in steps.items() if name != "trim_offsets"}
    return steps


def _special_ids(roles: Mapping[str, int | None], bos_id: int | None) -> dict[str, Any]:
    # Without a named begin token llama.cpp would assume one by itself.
    named = {**roles, "bos": roles["eos"] if roles["bos"] is None else roles["bos"]}
    ids = {ROLE_KEYS[role]: i for role, i in named.items() if i is not None}
    return {**ids, ADD_BOS_KEY: bos_id is not None}


def _filled(metadata: dict[str, Any], vocab_size: int | None) -> dict[str, Any]:
    """Return the metadata with one token per id of the model: llama.cpp needs as many as the embedding has rows."""
    count = len(metadata[TOKENS_KEY])
    if vocab_size is not None and vocab_size < count:
        raise ValueError(f"vocab_size: found {vocab_size}, expected at least the {count} of the tokenizer")
    ids = range(count, vocab_size or count)
    fillers = {
        TOKENS_KEY: [_filler(i) for i in ids],
        TYPES_KEY: [int(PieceKind.UNUSED)] * len(ids),
        SCORES_KEY: [FILLER_SCORE] * len(ids),
    }
    filled = {
        key: value + fillers.get(key, []) if isinstance(value, list) else value for key, value in metadata.items()
    }
    tokens = filled[TOKENS_KEY]
    token, count = Counter(tokens).most_common(1)[0]
    if count > 1:
        raise _impossible(f"its token {token!r} is spelled like a filler")
    return filled


def _filler(token_id: int) -> str:
    return f"[PAD{token_id}]"


def _impossible(reason: str) -> ValueError:
    return ValueError(
        f"llama.cpp cannot produce the ids of this tokenizer: {reason}; write the model without a tokenizer"
    )
