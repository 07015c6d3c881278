"""Tokenizer metadata of a GGUF file -> a tokenizer with the same ids as llama.cpp.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared_tokenizer.chat.template import LARGEST_TEMPLATE
from shared_tokenizer.gguf.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer
from shared_tokenizer.gguf.values import check_length, read_flag, read_id, read_list, shown
from shared_tokenizer.tokenizers.json_definition import LARGEST_ID
from shared_tokenizer.tokenizers.json_tokenizer import JsonTokenizer
from shared_tokenizer.tokenizers.json_vocabulary import BYTE_LEVEL
from shared_tokenizer.tokenizers.known_tokens import SPECIAL_NAMES
from shared_tokenizer.tokenizers.sentencepiece_model import BYTE_PIECES, SPECIAL_KINDS, PieceKind, make_bpe_model
from shared_tokenizer.tokenizers.sentencepiece_to_json import added_token, begin_with
from shared_tokenizer.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from shared_tokenizer.tokenizers.tokenizer import Tokenizer
from shared_tokenizer.tokenizers.tokenizer_files import (
    CHAT_TEMPLATE_FILE,
    CONFIG_FILE,
    GENERATION_CONFIG_FILE,
    dump_json,
    generation_config,
)

MODEL_KEY = "tokenizer.ggml.model"
PRE_KEY = "tokenizer.ggml.pre"
TOKENS_KEY = "tokenizer.ggml.tokens"
TYPES_KEY = "tokenizer.ggml.token_type"  # numbered as in a sentencepiece model: PieceKind
SCORES_KEY = "tokenizer.ggml.scores"
MERGES_KEY = "tokenizer.ggml.merges"
ADD_BOS_KEY = "tokenizer.ggml.add_bos_token"
SPACE_PREFIX_KEY = "tokenizer.ggml.add_space_prefix"
TEMPLATE_KEY = "tokenizer.chat_template"
ROLE_KEYS = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
}
# The token that ends a turn, where it differs from the one that ends a text.
EOT_KEY = "tokenizer.ggml.eot_token_id"
# One more token at which a generation stops: llama.cpp means the end of a message that continues.
EOM_KEY = "tokenizer.ggml.eom_token_id"
SENTENCEPIECE, BYTE_LEVEL_BPE = "llama", "gpt2"
NO_TOKENIZER = (None, "none", "no_vocab")
# The ids that llama.cpp assumes where the metadata of a sentencepiece vocabulary names no such token.
SENTENCEPIECE_ROLES = {"unk": 0, "bos": 1, "eos": 2}
# Characters, more than any token in use has. Bounds the search for the pairs that a piece is merged from.
LONGEST_TOKEN = 1024
WAY_OUT = "use the original directory of the model, which has its tokenizer"


@dataclass(frozen=True)
class _Vocabulary:
    """Tokens and their kinds by id, without the fillers at the end, and the ids of special tokens by their role."""

    tokens: Sequence[str]
    kinds: Sequence[PieceKind]
    roles: Mapping[str, int]


def gguf_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer | None:
    """Return the tokenizer of the metadata of a GGUF file, None where it has none.

    The ids equal those of llama.cpp, with these exceptions:
    - Special tokens and byte pieces (`<0x41>`) that are spelled out stay text here. So does U+2581, which llama.cpp
      takes for a space.
    - Byte-level tokenizers here know letters and digits that are newer than the Unicode tables of llama.cpp, and join
      the texts before and after a byte that the vocabulary lacks.

    `save` writes the files that `load_tokenizer` opens, and the chat template. Fillers at the end of the vocabulary
    are left out. Raises ValueError with the key, the value that was found, and the expected one.
    """
    try:
        model = metadata.get(MODEL_KEY)
        if model in NO_TOKENIZER:
            return None
        if model == SENTENCEPIECE:
            return _sentencepiece(metadata)
        if model == BYTE_LEVEL_BPE:
            return _byte_level(metadata)
        expected = f"{SENTENCEPIECE!r} (sentencepiece) or {BYTE_LEVEL_BPE!r} (byte-level BPE); {WAY_OUT}"
        raise ValueError(f"{MODEL_KEY}: found {shown(model)}, expected {expected}")
    except ValueError as error:
        raise ValueError(f"tokenizer of a GGUF file: {error}") from error


def _sentencepiece(metadata: Mapping[str, Any]) -> Tokenizer:
    vocabulary = _read_vocabulary(metadata, SENTENCEPIECE_ROLES)
    scores = _read_scores(metadata)[: len(vocabulary.tokens)]
    model = make_bpe_model(
        zip(vocabulary.tokens, scores, _sentencepiece_kinds(vocabulary), strict=True),
        {role: vocabulary.tokens[i] for role, i in vocabulary.roles.items()},
        add_dummy_prefix=read_flag(metadata, SPACE_PREFIX_KEY, True),
    )
    return SentencePieceTokenizer(model, _files(metadata, vocabulary, read_flag(metadata, ADD_BOS_KEY, True)))


def _sentencepiece_kinds(vocabulary: _Vocabulary) -> list[PieceKind]:
    """Return the kinds of a sentencepiece model: one unknown token, and control symbols for all other special ones."""
    named = set(vocabulary.roles.values())
    found = []
    for i, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True)):
        if i == vocabulary.roles["unk"]:
            found.append(PieceKind.UNKNOWN)
        elif i in named or kind in SPECIAL_KINDS or (kind == PieceKind.USER_DEFINED and token in SPECIAL_NAMES):
            found.append(PieceKind.CONTROL)
        elif kind == PieceKind.USER_DEFINED:
            raise ValueError(
                f"{TYPES_KEY}: found the user-defined token {shown(token)} at {i}, which llama.cpp matches by "
                f"rules of its own, expected none; {WAY_OUT}"
            )
        else:
            found.append(kind)
    byte_pieces = [token for token, kind in zip(vocabulary.tokens, found, strict=True) if kind == PieceKind.BYTE]
    if set(byte_pieces) != set(BYTE_PIECES):
        raise ValueError(f"{TYPES_KEY}: found {len(byte_pieces)} byte tokens, expected <0x00> to <0xFF>; {WAY_OUT}")
    return found


def _byte_level(metadata: Mapping[str, Any]) -> Tokenizer:
    pre_tokenizer = _read_pre_tokenizer(metadata)
    if read_flag(metadata, SPACE_PREFIX_KEY, False):
        raise ValueError(f"{SPACE_PREFIX_KEY}: found true with byte-level BPE, expected false; {WAY_OUT}")
    vocabulary = _read_vocabulary(metadata, {})
    if PieceKind.BYTE in vocabulary.kinds:
        raise ValueError(f"{TYPES_KEY}: found a byte token with byte-level BPE, expected none; {WAY_OUT}")
    if "eos" not in vocabulary.roles:
        raise ValueError(f"{ROLE_KEYS['eos']}: found none, expected the token that ends a text; {WAY_OUT}")
    adds_bos = read_flag(metadata, ADD_BOS_KEY, pre_tokenizer.adds_bos)
    if adds_bos and "bos" not in vocabulary.roles:
        raise ValueError(f"{ROLE_KEYS['bos']}: found none, expected an id, because {ADD_BOS_KEY} is true; {WAY_OUT}")
    definition = _byte_level_definition(vocabulary, _read_merges(metadata), pre_tokenizer, adds_bos)
    content = json.dumps(definition, ensure_ascii=False).encode("utf-8")
    return JsonTokenizer(content, _files(metadata, vocabulary, adds_bos))


def _byte_level_definition(
    vocabulary: _Vocabulary, merges: Sequence[Sequence[str]], pre_tokenizer: PreTokenizer, adds_bos: bool
) -> dict[str, Any]:
    tokens, roles = vocabulary.tokens, vocabulary.roles
    added = (*SPECIAL_KINDS, PieceKind.USER_DEFINED)
    entries = list(zip(range(len(tokens)), tokens, vocabulary.kinds, strict=True))
    used = {token: i for i, token, kind in entries if kind != PieceKind.UNUSED or i in roles.values()}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            added_token(i, token, special=kind in SPECIAL_KINDS) for i, token, kind in entries if kind in added
        ],
        "normalizer": pre_tokenizer.normalizer,
        "pre_tokenizer": pre_tokenizer.steps,
        "post_processor": begin_with(tokens[roles["bos"]], roles["bos"]) if adds_bos else None,
        "decoder": BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "ignore_merges": pre_tokenizer.keeps_whole_words,
            "vocab": used,
            "merges": merges,
        },
    }


def _read_pre_tokenizer(metadata: Mapping[str, Any]) -> PreTokenizer:
    name = metadata.get(PRE_KEY)
    for known in PRE_TOKENIZERS:
        if name in known.names:
            return known
    names = ", ".join(repr(known.name) for known in PRE_TOKENIZERS)
    raise ValueError(f"{PRE_KEY}: found {shown(name)}, expected one of {names}; {WAY_OUT}")


def _read_vocabulary(metadata: Mapping[str, Any], default_roles: Mapping[str, int]) -> _Vocabulary:
    tokens = read_list(metadata, TOKENS_KEY, str)
    kinds = [_read_kind(i, number) for i, number in enumerate(read_list(metadata, TYPES_KEY, int))]
    check_length(TYPES_KEY, kinds, tokens)
    if not 0 < len(tokens) <= LARGEST_ID:
        raise ValueError(f"{TOKENS_KEY}: found {len(tokens)} tokens, expected 1..{LARGEST_ID}")
    positions: dict[str, int] = {}
    for i, token in enumerate(tokens):
        if not 0 < len(token) <= LONGEST_TOKEN:
            raise ValueError(f"{TOKENS_KEY}: found {len(token)} characters at {i}, expected 1..{LONGEST_TOKEN}")
        if (first := positions.setdefault(token, i)) != i:
            raise ValueError(f"{TOKENS_KEY}: found {shown(token)} twice, at {first} and {i}, expected each token once")
    roles = {role: read_id(metadata, key, default_roles.get(role), len(tokens)) for role, key in ROLE_KEYS.items()}
    roles = {role: i for role, i in roles.items() if i is not None}
    count = len(tokens)
    while count > 0 and kinds[count - 1] == PieceKind.UNUSED and count - 1 not in roles.values():
        count -= 1
    return _Vocabulary(tokens[:count], kinds[:count], roles)


def _read_kind(position: int, number: int) -> PieceKind:
    try:
        return PieceKind(number)
    except ValueError:
        expected = ", ".join(f"{kind.value} ({kind.name.lower()})" for kind in PieceKind)
        raise ValueError(f"{TYPES_KEY}: found {number} at {position}, expected {expected}") from None


def _read_scores(metadata: Mapping[str, Any]) -> list[float]:
    scores = read_list(metadata, SCORES_KEY, float)
    check_length(SCORES_KEY, scores, metadata[TOKENS_KEY])
    for i, score in enumerate(scores):
        if not math.isfinite(score):
            raise ValueError(f"{SCORES_KEY}: found {score} at {i}, expected a finite number")
    return scores


def _read_merges(metadata: Mapping[str, Any]) -> list[list[str]]:
    merges = read_list(metadata, MERGES_KEY, str)
    if len(set(merges)) < len(merges):
        copies = len(merges) - len(set(merges))
        raise ValueError(f"{MERGES_KEY}: found {copies} merges twice, expected each once; {WAY_OUT}")
    return [merge.split(" ") for merge in merges]


def _files(metadata: Mapping[str, Any], vocabulary: _Vocabulary, adds_bos: bool) -> dict[str, bytes]:
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": adds_bos,
        "clean_up_tokenization_spaces": False,
        **{f"{role}_token": vocabulary.tokens[i] for role, i in vocabulary.roles.items()},
    }
    files = {CONFIG_FILE: dump_json(config)}
    roles, count = vocabulary.roles, len(metadata[TOKENS_KEY])
    others = [read_id(metadata, key, None, count) for key in (EOT_KEY, EOM_KEY)]
    if others := [i for i in others if i is not None]:
        ends = list(dict.fromkeys((roles["eos"], *others)))
        files[GENERATION_CONFIG_FILE] = generation_config(roles.get("bos"), ends, roles.get("pad"))
    template = metadata.get(TEMPLATE_KEY)
    if template is None:
        return files
    if not isinstance(template, str):
        raise ValueError(f"{TEMPLATE_KEY}: found {shown(template)}, expected a string")
    content = template.encode("utf-8")
    if len(content) > LARGEST_TEMPLATE:
        raise ValueError(f"{TEMPLATE_KEY}: found {len(content)} bytes, expected at most {LARGEST_TEMPLATE}")
    return files | {CHAT_TEMPLATE_FILE: content}
