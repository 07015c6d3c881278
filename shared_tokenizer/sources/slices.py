"""The plan of a preparation: files, cut into slices.

A worker can read any slice alone, on any machine that sees the files, in any order.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow
import pyarrow.parquet

from shared_tokenizer.readers.rows import MAX_TEXT_BYTES, Piece
from shared_tokenizer.readers.streams import is_compressed
from shared_tokenizer.sources.documents import Document, Rejected, read_file
from shared_tokenizer.sources.files import SourceFile

SMALLEST_SLICE_BYTES = 4 << 20
LARGEST_SLICE_BYTES = 32 << 20
_BLOCK = 1 << 20


class Part(Protocol):
    """A portion of an input whose documents can be read without the rest of it."""

    @property
    def source(self) -> str:
        """Return the name of the input that the part belongs to."""
        ...

    def read(self) -> Iterator[Document | Rejected]:
        """Yield the documents of the part."""
        ...


@dataclass(frozen=True)
class FilePart:
    """A piece of a file, as a part."""

    file: SourceFile
    piece: Piece

    @property
    def source(self) -> str:
        """Return the input that the file belongs to."""
        return self.file.source

    def read(self) -> Iterator[Document | Rejected]:
        """Yield the documents of the piece."""
        return read_file(self.file, self.piece)


@dataclass(frozen=True)
class Slice:
    """The work of one job: parts that are read one after another."""

    index: int
    parts: Sequence[Part]

    @property
    def holds_validation(self) -> bool:
        """Return True if a file of the slice is held out by its name."""
        return any(isinstance(part, FilePart) and part.file.split == "val" for part in self.parts)

    def read(self) -> Iterator[tuple[str, Document | Rejected]]:
        """Yield source and document of every row."""
        for part in self.parts:
            for document in part.read():
                yield part.source, document


@dataclass(frozen=True)
class Plan:
    """All slices of an input. `fingerprint` is the sha256, as hex, of the contents and their order."""

    slices: Sequence[Slice]
    fingerprint: str
    holds_chats: bool
    """True where any document is a chat or a pair of chats."""
    holds_pairs: bool = False
    """True where every document is a pair of chats."""


def plan_files(files: Sequence[SourceFile]) -> Plan:
    """Cut files into slices of 4 to 32 MiB. The cuts depend on the content of the files alone.

    Every file is read once, for its sha256. Raises ValueError where some files hold pairs of answers and others do not.
    """
    holds_pairs = _hold_pairs(files)
    total = sum(file.path.stat().st_size for file in files)
    slice_bytes = min(max(SMALLEST_SLICE_BYTES, total // 64), LARGEST_SLICE_BYTES)
    digest = hashlib.sha256()
    parts: list[tuple[FilePart, int]] = []
    for file in files:
        content, pieces = _scan(file, slice_bytes)
        # What most files have not is left out where it is absent, so that sets of earlier versions are known again.
        more = "".join(f"{name}={value}\0" for name, value in (("split", file.split), ("in", file.encoding)) if value)
        digest.update(f"{file.name}\0{file.format}\0{file.columns}\0{more}".encode() + content)
        parts += [(FilePart(file, piece), size) for piece, size in pieces]
    holds_chats = any(file.holds_chats for file in files)
    return Plan(list(_group(parts, slice_bytes)), digest.hexdigest(), holds_chats, holds_pairs)


def _hold_pairs(files: Sequence[SourceFile]) -> bool:
    """Return True if all readable files hold pairs, False if none does. Raises ValueError otherwise."""
    readable = [file for file in files if file.problem is None]
    pairs = [file for file in readable if file.columns.preference is not None]
    if pairs and len(pairs) < len(readable):
        other = next(file for file in readable if file.columns.preference is None)
        raise ValueError(
            f"{pairs[0].path}: found pairs of answers, and in {other.path} none, expected one kind in a set; prepare "
            "them one by one, or learn the chosen answers alone with --text_column chosen"
        )
    return bool(pairs)


def _group(parts: Iterable[tuple[FilePart, int]], slice_bytes: int) -> Iterator[Slice]:
    """Yield slices of consecutive parts, each of at most `slice_bytes` where a part is not larger by itself."""
    index, group, size = 0, [], 0
    for part, part_bytes in parts:
        if group and size + part_bytes > slice_bytes:
            yield Slice(index, group)
            index, group, size = index + 1, [], 0
        group.append(part)
        size += part_bytes
    if group:
        yield Slice(index, group)


def _scan(file: SourceFile, slice_bytes: int) -> tuple[bytes, list[tuple[Piece, int]]]:
    """Return the sha256 of a file (32 bytes), and its pieces that can be read alone, with their sizes in bytes."""
    every = {"text": MAX_TEXT_BYTES, "jsonl": slice_bytes}.get(file.format)
    if every is not None and file.encoding is None and not is_compressed(file.path):
        return _scan_lines(file.path, every)
    content = _scan_lines(file.path, None)[0]
    if file.format == "parquet":
        return content, _row_groups(file.path, slice_bytes)
    return content, [(Piece(), file.path.stat().st_size)]


def _scan_lines(path: Path, every: int | None) -> tuple[bytes, list[tuple[Piece, int]]]:
    """Return the sha256 of a file, and pieces that end at the first line end after `every` bytes; None cuts nothing."""
    digest = hashlib.sha256()
    position, lines = 0, 1
    start, start_line = 0, 1
    pieces = []
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            cut = 0
            while every is not None and (end := block.find(b"\n", max(cut, start + every - position))) >= 0:
                lines += block.count(b"\n", cut, end + 1)
                cut, stop = end + 1, position + end + 1
                pieces.append((Piece(start, stop, start_line), stop - start))
                start, start_line = stop, lines
            lines += block.count(b"\n", cut)
            position += len(block)
    if position > start or not pieces:
        pieces.append((Piece(start, position if every else None, start_line), position - start))
    return digest.digest(), pieces


def _row_groups(path: Path, slice_bytes: int) -> list[tuple[Piece, int]]:
    """Return pieces of consecutive row groups, each of about `slice_bytes`."""
    try:
        metadata = pyarrow.parquet.read_metadata(path)
    except (pyarrow.ArrowException, OSError):
        return [(Piece(), path.stat().st_size)]  # the reader reports the error
    pieces = []
    start, row, size, rows = 0, 1, 0, 0
    for group in range(metadata.num_row_groups):
        size += metadata.row_group(group).total_byte_size
        rows += metadata.row_group(group).num_rows
        if size >= slice_bytes or group + 1 == metadata.num_row_groups:
            pieces.append((Piece(start, group + 1, row), size))
            start, row, size, rows = group + 1, row + rows, 0, 0
    return pieces
