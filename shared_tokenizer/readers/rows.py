"""Rows and pieces of files, and the limits within which a file is read."""

from dataclasses import dataclass
from typing import Any

MAX_ROW_BYTES = 16 << 20
# A longer text file becomes several documents, cut at line ends.
MAX_TEXT_BYTES = 8 << 20
# A row of up to so many times MAX_ROW_BYTES is skipped; after a longer one the rest of the file is lost.
SKIPPED_ROWS = 4
# Content may be so many times larger than its file, beyond some bytes that are free. Text is not, a bomb is.
MAX_EXPANSION = 1000
FREE_BYTES = 64 << 20


@dataclass(frozen=True)
class Row:
    """A text or an object. `number` is its line or row in the file, from 1; 0 stands for the whole file."""

    number: int
    value: Any


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be read, and the reason. `loses_rest` tells that no row after it can be read either."""

    number: int
    reason: str
    loses_rest: bool = False


@dataclass(frozen=True)
class Piece:
    """A part of a file: bytes `start` to `stop`, or row groups of parquet. None stands for the end of the file.

    `line` is the number of its first line or row, from 1.
    """

    start: int = 0
    stop: int | None = None
    line: int = 1


class LostRestError(Exception):
    """Error of a reader: nothing after this place of the file can be read."""


def too_long(kind: str = "") -> str:
    """Return the reason why a row, or a longer thing that is named, is not read."""
    return f"{kind}longer than {MAX_ROW_BYTES >> 20} MiB"


def most_content_bytes(file_bytes: int) -> int:
    """Return the bytes that the content of a file of this size may have."""
    return FREE_BYTES + MAX_EXPANSION * file_bytes
