"""Reads sentencepiece's model file: the few fields of its protocol buffer that its own package does not show."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum


class PieceKind(IntEnum):
    """What a piece is, numbered as in the file."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


UNIGRAM, BPE = 1, 2
SPECIAL_KINDS = (PieceKind.CONTROL, PieceKind.UNKNOWN)
SPACE_MARKER = "\u2581"  # how a space is written inside a piece
# A message appended to another is merged into it: normalizer_spec { add_dummy_prefix: false }.
NO_DUMMY_PREFIX = bytes([0x1A, 2, 0x18, 0])


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary; `score_at` is where its score's four bytes begin in the file."""

    text: str = ""
    score: float = 0.0
    kind: PieceKind = PieceKind.NORMAL
    score_at: int | None = None


@dataclass
class SentencePieceModel:
    """What a model file says; the defaults are those of a file that does not say."""

    pieces: list[Piece] = field(default_factory=list)
    model_type: int = UNIGRAM
    whitespace_as_suffix: bool = False
    dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True
    changes_characters: bool = False


def read_model(content: bytes) -> SentencePieceModel:
    """Read a model file. Raises ValueError where the bytes are not one."""
    model = SentencePieceModel()
    try:
        for number, value, _ in _fields(content, 0, len(content)):
            if isinstance(value, range):
                _read_part(model, content, number, value)
    except (IndexError, struct.error, UnicodeDecodeError, ValueError) as error:
        raise ValueError("tokenizer: found bytes that are not a sentencepiece model") from error
    return model


def _read_part(model: SentencePieceModel, content: bytes, number: int, place: range) -> None:
    if number == 1:
        model.pieces.append(_read_piece(content, place))
    elif number == 2:
        values = _numbers(content, place)
        model.model_type = values.get(3, model.model_type)
        model.whitespace_as_suffix = bool(values.get(24, model.whitespace_as_suffix))
    elif number == 3:
        values = _numbers(content, place)
        model.changes_characters |= bool(values.get(2))
        model.dummy_prefix = bool(values.get(3, model.dummy_prefix))
        model.remove_extra_whitespaces = bool(values.get(4, model.remove_extra_whitespaces))
        model.escape_whitespaces = bool(values.get(5, model.escape_whitespaces))


def _numbers(content: bytes, place: range) -> dict[int, int]:
    """A message's fields: of numbers their value, of strings and the like their length."""
    fields = _fields(content, place.start, place.stop)
    return {
        number: len(value) if isinstance(value, range) else value for number, value, _ in fields if value is not None
    }


def _read_piece(content: bytes, place: range) -> Piece:
    text, score, kind, score_at = "", 0.0, PieceKind.NORMAL, None
    for number, value, at in _fields(content, place.start, place.stop):
        if number == 1 and isinstance(value, range):
            text = content[value.start : value.stop].decode("utf-8")
        elif number == 2:
            score, score_at = struct.unpack_from("<f", content, at)[0], at
        elif number == 3 and isinstance(value, int):
            kind = PieceKind(value)
    return Piece(text, score, kind, score_at)


def _fields(content: bytes, at: int, end: int) -> Iterator[tuple[int, int | range | None, int]]:
    """Field number, value (a number, or the range of its bytes) and where the value begins."""
    while at < end:
        key, at = _varint(content, at)
        number, wire = key >> 3, key & 7
        start = at
        if wire == 0:
            value, at = _varint(content, at)
            yield number, value, start
        elif wire == 2:
            size, start = _varint(content, at)
            at = start + size
            yield number, range(start, at), start
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
            yield number, None, start
        else:
            raise ValueError(f"wire type {wire}")
        if at > end:
            raise ValueError("a field that ends after its message")


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = content[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
