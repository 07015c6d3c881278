"""A tokenizer.json with what the files next to it change, as transformers reads them together."""

import json
from collections.abc import Sequence
from typing import Any

from shared_tokenizer.tokenizers.effective_model import LLAMA_CLASS
from shared_tokenizer.tokenizers.json_definition import JsonDefinition, read_definition
from shared_tokenizer.tokenizers.named_tokens import AddedToken, NamedTokens
from shared_tokenizer.tokenizers.sentencepiece_model import SPACE_MARKER
from shared_tokenizer.tokenizers.sentencepiece_to_json import added_token
from shared_tokenizer.tokenizers.tokenizer_files import CONFIG_FILE, DEFINITION_FILE

# Classes of transformers that take `add_prefix_space` from tokenizer_config.json, and not from tokenizer.json.
BYTE_LEVEL_CLASSES = ("GPT2Tokenizer", "GPTNeoXTokenizer", "Qwen2Tokenizer")
# The one of them whose own pre-tokenizer has several steps.
_SPLITS = "Qwen2Tokenizer"
_WAY_OUT = "save the tokenizer again with the program that made it"


def effective_definition(content: bytes, named: NamedTokens) -> tuple[JsonDefinition, bytes, list[str]]:
    """Return the definition to use, its content as a file, and a line for each part that the files state differently.

    Raises ValueError where the definition is damaged or an added token does not fit it.
    """
    definition, notes = read_definition(content), list(named.disagreements)
    changes = _with_tokens(definition, named.added_tokens) | _with_spaces(definition, named, notes)
    if not changes:
        return definition, content, notes
    changed = json.dumps(definition.parts | changes, ensure_ascii=False, indent=1).encode("utf-8")
    return read_definition(changed), changed, notes


def llama_spaces(definition: JsonDefinition, named: NamedTokens) -> dict[str, Any] | None:
    """Return the normalizer and pre-tokenizer that transformers' class for Llama puts in the place of those in the
    file; None for other classes and other kinds of tokenizers.

    A space is put before a text, unless the text begins with one.
    """
    is_llama = named.tokenizer_class == LLAMA_CLASS and definition.model_type == "BPE"
    has_marker = any(piece.startswith(SPACE_MARKER) for piece in definition.vocabulary)
    if not is_llama or not has_marker or _byte_levels(definition.parts.get("pre_tokenizer")):
        return None
    scheme = "always" if named.config.get("legacy") is True else "first"
    scheme = "never" if named.adds_prefix_space is False else scheme
    metaspace = {"type": "Metaspace", "replacement": SPACE_MARKER, "prepend_scheme": scheme, "split": False}
    return {"normalizer": None, "pre_tokenizer": metaspace}


def _with_tokens(definition: JsonDefinition, tokens: Sequence[AddedToken]) -> dict[str, Any]:
    ids, size = definition.ids, definition.vocab_size
    added = {entry["content"]: entry for entry in definition.parts.get("added_tokens") or []}
    entries = dict(added)
    for token in tokens:
        where = f"{token.source}: {token.content!r}"
        found = ids.get(token.content)
        if found is None and token.token_id != size:
            raise ValueError(
                f"{where}: found id {token.token_id}, expected {size}, the next one after {DEFINITION_FILE}; {_WAY_OUT}"
            )
        if found is not None and found != token.token_id:
            raise ValueError(f"{where}: found id {token.token_id}, but {found} in {DEFINITION_FILE}; {_WAY_OUT}")
        size += found is None
        entry = entries.get(token.content)
        if entry is None:
            made = added_token(token.token_id, token.content, special=token.is_special)
            entries[token.content] = made | dict(token.flags)
        elif token.is_special and not entry.get("special"):
            entries[token.content] = entry | {"special": True}
    return {} if entries == added else {"added_tokens": list(entries.values())}


def _with_spaces(definition: JsonDefinition, named: NamedTokens, notes: list[str]) -> dict[str, Any]:
    wanted, pre_tokenizer = named.adds_prefix_space, definition.parts.get("pre_tokenizer") or {}
    # Texts that begin with a space apart, the class for Llama differs from the file only where this is false.
    if wanted is False and (spaces := llama_spaces(definition, named)) is not None:
        current = {name: definition.parts.get(name) for name in spaces}
        if spaces == current:
            return {}
        notes.append(
            f"add_prefix_space: read False of {CONFIG_FILE} ({LLAMA_CLASS}), as transformers does; {DEFINITION_FILE} "
            "puts a space before a text"
        )
        return spaces
    found = {bool(part.get("add_prefix_space", True)) for part in _byte_levels(pre_tokenizer)}
    name = named.tokenizer_class
    if name in BYTE_LEVEL_CLASSES:
        wanted = bool(wanted)  # False where it is missing
        if found and isinstance(pre_tokenizer, dict) and pre_tokenizer.get("type") == "Sequence" and name != _SPLITS:
            notes.append(
                f"the pre-tokenizer of {DEFINITION_FILE} is read; transformers 5 replaces it by that of {name}"
            )
    if wanted is None or not found or found == {wanted}:
        return {}
    if name not in BYTE_LEVEL_CLASSES:
        notes.append(
            f"add_prefix_space: {wanted} in {CONFIG_FILE} has no effect with {name or 'no tokenizer_class'}, in "
            f"transformers neither; {DEFINITION_FILE} has {not wanted}"
        )
        return {}
    notes.append(
        f"add_prefix_space: read {wanted} of {CONFIG_FILE} ({name}), as transformers does; {DEFINITION_FILE} has "
        f"{not wanted}"
    )
    return {"pre_tokenizer": _with_prefix_space(pre_tokenizer, wanted)}


def _byte_levels(part: Any) -> list[dict[str, Any]]:
    """Return the byte-level parts of a pre-tokenizer."""
    if not isinstance(part, dict):
        return []
    if part.get("type") == "ByteLevel":
        return [part]
    nested = part.get("pretokenizers")
    return [found for entry in nested for found in _byte_levels(entry)] if isinstance(nested, list) else []


def _with_prefix_space(part: dict[str, Any], wanted: bool) -> dict[str, Any]:
    """Return a pre-tokenizer whose first byte-level part adds a space as wanted, and no other one does."""
    if part.get("type") == "ByteLevel":
        return part | {"add_prefix_space": wanted}
    nested = part.get("pretokenizers")
    if not isinstance(nested, list):
        return part
    return part | {"pretokenizers": [_with_prefix_space(entry, wanted) for entry in nested]}
