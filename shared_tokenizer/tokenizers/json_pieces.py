"""The UTF-8 bytes of the tokens of a tokenizer.json. Each kind of tokenizer spells them in its own way."""

import re
from collections.abc import Callable
from functools import cache
from typing import Any

from shared_tokenizer.tokenizers.json_definition import JsonDefinition
from shared_tokenizer.tokenizers.sentencepiece_model import SPACE_MARKER

# UTF-8 text never holds the other bytes.
UTF8_BYTES = frozenset([*range(0xC0), *range(0xC2, 0xF5)])
BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")


def piece_bytes(definition: JsonDefinition) -> list[bytes]:
    """Return the UTF-8 bytes of each id `[vocab_size]`; empty for special tokens and for holes."""
    pieces = [b""] * definition.vocab_size
    read = _reader(definition)
    for token, token_id in definition.vocabulary.items():
        pieces[token_id] = read(token)
    for token, token_id in definition.added.items():
        pieces[token_id] = token.encode()  # matched in the text as they are spelled
    for token_id in definition.special.values():
        pieces[token_id] = b""
    return pieces


def missing_bytes(definition: JsonDefinition) -> frozenset[int]:
    """Return the UTF-8 bytes without a token: they are dropped from a text, or become the unknown token."""
    if _is_byte_level(definition):
        found = {_byte_alphabet()[token] for token in definition.vocabulary if token in _byte_alphabet()}
    elif definition.model.get("byte_fallback"):
        found = {int(match[1], 16) for token in definition.vocabulary if (match := BYTE_PIECE.fullmatch(token))}
    else:
        return frozenset()
    return UTF8_BYTES - found


def begins_words(definition: JsonDefinition) -> bool:
    """Return True if tokens are words, each with a space before it."""
    return definition.model_type in ("WordPiece", "WordLevel") and "Fuse" not in _types(definition.parts.get("decoder"))


def _reader(definition: JsonDefinition) -> Callable[[str], bytes]:
    """Return the function that turns the spelling of a token into its bytes."""
    if _is_byte_level(definition):
        return _read_byte_level
    if begins_words(definition):
        prefix = definition.model.get("continuing_subword_prefix") if definition.model_type == "WordPiece" else None
        return lambda token: _read_word(token, prefix)
    has_bytes = bool(definition.model.get("byte_fallback"))
    return lambda token: _read_marked(token, has_bytes)


def _read_byte_level(token: str) -> bytes:
    alphabet = _byte_alphabet()
    return b"".join([bytes([alphabet[c]]) if c in alphabet else c.encode() for c in token])


def _read_word(token: str, prefix: str | None) -> bytes:
    if prefix and token.startswith(prefix):
        return token.removeprefix(prefix).encode()
    return b" " + token.encode()


def _read_marked(token: str, has_bytes: bool) -> bytes:
    if has_bytes and (match := BYTE_PIECE.fullmatch(token)):
        return bytes([int(match[1], 16)])
    return token.replace(SPACE_MARKER, " ").encode()


def _is_byte_level(definition: JsonDefinition) -> bool:
    parts = (definition.parts.get(name) for name in ("normalizer", "pre_tokenizer", "decoder"))
    return any("ByteLevel" in _types(part) for part in parts)


def _types(part: Any) -> set[str]:
    """Return the types of a part of the definition and of all its nested parts."""
    if isinstance(part, list):
        return {name for entry in part for name in _types(entry)}
    if not isinstance(part, dict):
        return set()
    return {str(part.get("type"))} | _types([value for value in part.values() if isinstance(value, list)])


@cache
def _byte_alphabet() -> dict[str, int]:
    """Return the byte of each character of GPT-2's alphabet.

    Visible Latin-1 characters stand for themselves, the characters from U+0100 on for the other bytes.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(0x100 + i): byte for i, byte in enumerate(hidden)}
