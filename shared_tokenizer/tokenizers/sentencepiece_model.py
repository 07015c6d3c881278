"""The content of a sentencepiece model file, as far as the sentencepiece package does not show it."""

from collections import Counter
from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import Any

from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2


class PieceKind(IntEnum):
    """The kind of a piece: its `type`, numbered as in the file (sentencepiece_model.proto)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


UNIGRAM, BPE = 1, 2
SPECIAL_KINDS = (PieceKind.CONTROL, PieceKind.UNKNOWN)
SPACE_MARKER = "\u2581"  # stands for a space inside a piece
BYTE_PIECES = tuple(f"<0x{byte:02X}>" for byte in range(256))


def parse_model(content: bytes) -> Any:
    """Return the ModelProto of a model file. Raises ValueError on other bytes."""
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise ValueError("tokenizer: found bytes that are not a sentencepiece model") from error
    for i, piece in enumerate(model.pieces):
        if not isinstance(piece.piece, str):  # protobuf returns bytes where they are not UTF-8
            raise ValueError(f"tokenizer: piece {i} is {bytes(piece.piece)[:40]!r}, which is not UTF-8")
    spec = model.trainer_spec
    for role in ("unk", "bos", "eos", "pad"):
        if not isinstance(getattr(spec, f"{role}_piece"), str):
            raise ValueError(f"tokenizer: {role}_piece is not UTF-8")
    return model


def plain_pieces(model: Any) -> list[str]:
    """Return the texts of the pieces, with plain spaces."""
    return [piece.piece.replace(SPACE_MARKER, " ") for piece in model.pieces]


def ends_lines(model: Any) -> bool:
    """Return True if a newline always ends its token: a text may be cut there without other ids."""
    return not any("\n" in piece[:-1] for piece in plain_pieces(model))


def peculiarity(model: Any) -> str | None:
    """Return the first feature of a model beyond cutting an unchanged text into pieces and bytes, None without one."""
    normalizer = model.normalizer_spec
    kinds = Counter(piece.type for piece in model.pieces)
    found = {
        "it changes characters": normalizer.precompiled_charsmap,
        "it removes spaces": normalizer.remove_extra_whitespaces,
        "it does not mark spaces": not normalizer.escape_whitespaces,
        "its spaces end words": model.trainer_spec.treat_whitespace_as_suffix,
        "it lacks bytes": kinds[PieceKind.BYTE] < len(BYTE_PIECES),
        "it has unused pieces": kinds[PieceKind.UNUSED],
        "it has user-defined pieces": kinds[PieceKind.USER_DEFINED],
        "it has two pieces for one text": len(set(plain_pieces(model))) < len(model.pieces),
    }
    return next((feature for feature, is_present in found.items() if is_present), None)


def make_bpe_model(
    pieces: Iterable[tuple[str, float, PieceKind]], roles: Mapping[str, str], *, add_dummy_prefix: bool
) -> bytes:
    """Return a BPE model file of pieces (text, score, kind), without normalization of texts.

    `roles` holds the pieces of the roles "unk", "bos", "eos" and "pad", as far as there are any.
    """
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    for text, score, kind in pieces:
        model.pieces.add(piece=text, score=score, type=kind)
    model.trainer_spec.model_type = BPE
    model.trainer_spec.byte_fallback = True
    for role, text in roles.items():
        setattr(model.trainer_spec, f"{role}_piece", text)
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = add_dummy_prefix
    model.normalizer_spec.remove_extra_whitespaces = False
    return model.SerializeToString()
