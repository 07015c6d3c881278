"""A sentencepiece model file: what its own package does not show of it."""

from enum import IntEnum
from typing import Any

from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2


class PieceKind(IntEnum):
    """What a piece is (its `type`), numbered as in the file."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


UNIGRAM, BPE = 1, 2
SPECIAL_KINDS = (PieceKind.CONTROL, PieceKind.UNKNOWN)
SPACE_MARKER = "\u2581"  # how a space is written inside a piece


def parse_model(content: bytes) -> Any:
    """The ModelProto of a model file. Raises ValueError where the bytes are not one."""
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise ValueError("tokenizer: found bytes that are not a sentencepiece model") from error
    return model


def plain_pieces(model: Any) -> list[str]:
    """What the pieces say, with spaces as spaces."""
    return [piece.piece.replace(SPACE_MARKER, " ") for piece in model.pieces]


def ends_lines(model: Any) -> bool:
    """Whether a newline always ends its token, so that a text may be cut after any."""
    return not any("\n" in piece[:-1] for piece in plain_pieces(model))
