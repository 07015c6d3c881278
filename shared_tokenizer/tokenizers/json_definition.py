"""Read a tokenizer.json, and refuse what the tokenizers library would read wrongly."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import tokenizers

from shared_tokenizer.tokenizers.known_tokens import CHAT_MARKERS
from shared_tokenizer.tokenizers.tokenizer_files import DEFINITION_FILE, parse_json_object

LARGEST_ID = (1 << 24) - 1
# Times that the steps of a normalizer may make a text longer, all together; one step of a real one by a few characters.
LARGEST_GROWTH = 64


@dataclass(frozen=True)
class JsonDefinition:
    """A checked tokenizer.json. `added` holds the ids of ordinary added tokens, `special` those of special ones."""

    parts: dict[str, Any]
    vocabulary: dict[str, int]
    added: dict[str, int]
    special: dict[str, int]

    @cached_property
    def ids(self) -> dict[str, int]:
        """Return the ids of all tokens."""
        return self.vocabulary | self.added | self.special

    @property
    def vocab_size(self) -> int:
        """Return the highest id plus one; ids may have holes."""
        return max(self.ids.values()) + 1

    @property
    def model(self) -> dict[str, Any]:
        """Return the part `model`."""
        return self.parts["model"]

    @property
    def model_type(self) -> str:
        """Return BPE, Unigram, WordPiece or WordLevel. Old files lack the type; it is inferred from other keys."""
        if "type" in self.model:
            return str(self.model["type"])
        if isinstance(self.model["vocab"], list):
            return "Unigram"
        if "merges" in self.model:
            return "BPE"
        return "WordPiece" if "continuing_subword_prefix" in self.model else "WordLevel"

    @property
    def merges(self) -> list[Sequence[str]]:
        """Return the pairs of pieces to merge, in order of priority; empty where the model has none."""
        return list(_merges(self.model.get("merges") or []))

    @property
    def unknown_id(self) -> int | None:
        """Return the id of the unknown token, None where there is none."""
        if self.model_type == "Unigram":
            return self.model.get("unk_id")
        return self.ids.get(self.model.get("unk_token") or "")


def read_definition(content: bytes) -> JsonDefinition:
    """Read and check a tokenizer.json. Raises ValueError with the first fault."""
    parts = parse_json_object(DEFINITION_FILE, content)
    model = parts.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict | list) or not model["vocab"]:
        raise ValueError(f"{DEFINITION_FILE}: found no model with a vocabulary, expected a tokenizer")
    vocabulary = _vocabulary(model["vocab"])
    check_ids(DEFINITION_FILE, vocabulary.items())
    if model.get("merges") is not None:
        check_merges(vocabulary, _merges(model["merges"]), str(model.get("continuing_subword_prefix") or ""))
    unknown = model.get("unk_token")
    if unknown is not None and not (isinstance(unknown, str) and unknown in vocabulary):
        raise ValueError(f"{DEFINITION_FILE}: unk_token: found {unknown!r}, which is not in the vocabulary")
    _check_growth(parts.get("normalizer"))
    tokens = _added_tokens(parts.get("added_tokens") or [])
    _check_added(vocabulary, tokens)
    special = {token["content"]: token["id"] for token in tokens if _is_special(token)}
    added = {token["content"]: token["id"] for token in tokens if not _is_special(token)}
    return JsonDefinition(parts, vocabulary, added, special)


def open_definition(definition: JsonDefinition) -> tokenizers.Tokenizer:
    """Return the tokenizer of the library, without truncation, padding and dropout; special tokens stay text."""
    added = [token | {"special": _is_special(token)} for token in definition.parts.get("added_tokens") or []]
    parts = definition.parts | {"truncation": None, "padding": None, "added_tokens": added}
    if "dropout" in definition.model:
        parts["model"] = definition.model | {"dropout": None}
    with library_errors(DEFINITION_FILE):
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(parts))
    tokenizer.encode_special_tokens = True
    for content, token_id in (definition.added | definition.special).items():
        if tokenizer.token_to_id(content) != token_id:
            raise ValueError(
                f"{DEFINITION_FILE}: added_tokens: found {content!r} with id {token_id}, expected "
                f"{tokenizer.token_to_id(content)}: ids of added tokens continue those of the vocabulary without a hole"
            )
    return tokenizer


@contextmanager
def library_errors(name: str) -> Iterator[None]:
    """Turn all errors of the library, plain Exceptions and its own panics, into ValueErrors."""
    try:
        yield
    except BaseException as error:
        if not (isinstance(error, Exception) or type(error).__name__ == "PanicException"):
            raise
        raise ValueError(f"{name}: the tokenizers library reports: {error}") from error


def check_ids(name: str, items: Iterable[tuple[str, Any]]) -> None:
    """Raise ValueError unless every token has its own id, from 0 to LARGEST_ID."""
    tokens: dict[int, str] = {}
    for token, token_id in items:
        if not isinstance(token_id, int) or isinstance(token_id, bool) or not 0 <= token_id <= LARGEST_ID:
            raise ValueError(f"{name}: {token!r}: found id {token_id!r}, expected a whole number 0..{LARGEST_ID}")
        if token_id in tokens:
            raise ValueError(f"{name}: found id {token_id} twice, for {tokens[token_id]!r} and {token!r}")
        tokens[token_id] = token


def _check_growth(normalizer: Any) -> None:
    """Raise ValueError where normalizers make a text so much longer that a short one never ends."""
    growth, steps = 1.0, [normalizer]
    while steps:
        step = steps.pop()
        if not isinstance(step, dict):
            continue
        nested = step.get("normalizers")
        steps += nested if isinstance(nested, list) else []
        content, pattern = step.get("content"), step.get("pattern")
        if step.get("type") == "Replace" and isinstance(content, str):
            text = pattern.get("String") if isinstance(pattern, dict) else None
            # A pattern may match one character, or none at all: then its replacement is inserted.
            growth *= max(1.0, len(content) / len(text) if isinstance(text, str) and text else len(content) + 1)
        elif step.get("type") == "Prepend" and isinstance(step.get("prepend"), str):
            growth += len(step["prepend"]) / LARGEST_ID  # once a text, however long that is: it counts little
        if growth > LARGEST_GROWTH:
            raise ValueError(
                f"{DEFINITION_FILE}: normalizer: found steps that make a text {growth:,.0f} times as long, expected at "
                f"most {LARGEST_GROWTH}"
            )


def check_merges(vocabulary: dict[str, int], merges: Iterable[Sequence[str]], prefix: str = "") -> None:
    """Raise ValueError unless both sides of every merge and their result are in the vocabulary."""
    for number, (left, right) in enumerate(merges, 1):
        if not right.startswith(prefix):
            raise ValueError(f"merges: merge {number}: found {right!r}, expected it to begin with {prefix!r}")
        for token in (left, right, left + right.removeprefix(prefix)):
            if token not in vocabulary:
                raise ValueError(
                    f"merges: merge {number} is {left!r} {right!r}, but {token!r} is not in the vocabulary; "
                    "use the vocabulary and the merges of one tokenizer"
                )


def _vocabulary(found: dict[str, Any] | list[Any]) -> dict[str, Any]:
    if isinstance(found, dict):
        return found
    for entry in found:
        if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)):
            raise ValueError(f"{DEFINITION_FILE}: vocab: found {entry!r}, expected a piece and its score")
    vocabulary = {piece: i for i, (piece, _) in enumerate(found)}
    if len(vocabulary) < len(found):
        piece = next(piece for i, (piece, _) in enumerate(found) if vocabulary[piece] != i)
        raise ValueError(f"{DEFINITION_FILE}: vocab: found {piece!r} twice")
    return vocabulary


def _merges(found: Any) -> Iterator[Sequence[str]]:
    """Yield the pairs of merges. Older files write a pair as one text with a space."""
    for merge in found if isinstance(found, list) else [found]:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(side, str) for side in pair)):
            raise ValueError(f"{DEFINITION_FILE}: merges: found {merge!r}, expected two pieces")
        yield pair


def _added_tokens(found: Any) -> list[dict[str, Any]]:
    if not isinstance(found, list):
        raise ValueError(
            f"{DEFINITION_FILE}: added_tokens: found {str(found)[:100]}, expected an object with content and id per "
            "token, in a list"
        )
    for token in found:
        if not (isinstance(token, dict) and isinstance(token.get("content"), str) and token["content"]):
            raise ValueError(
                f"{DEFINITION_FILE}: added_tokens: found {token!r}, expected an object with content and id"
            )
    return found


def _check_added(vocabulary: dict[str, int], tokens: list[dict[str, Any]]) -> None:
    contents = [token["content"] for token in tokens]
    unique = set(contents)
    if len(unique) < len(contents):
        twice = next(content for content in contents if contents.count(content) > 1)
        raise ValueError(f"{DEFINITION_FILE}: added_tokens: found {twice!r} twice")
    name = f"{DEFINITION_FILE}: added_tokens"
    added = [(token["content"], token.get("id")) for token in tokens]
    for content, token_id in added:
        if vocabulary.get(content, token_id) != token_id:
            raise ValueError(f"{name}: {content!r}: found id {token_id}, but {vocabulary[content]} in the vocabulary")
    check_ids(name, [*(pair for pair in vocabulary.items() if pair[0] not in unique), *added])


def _is_special(token: dict[str, Any]) -> bool:
    return bool(token.get("special")) or token["content"] in CHAT_MARKERS
