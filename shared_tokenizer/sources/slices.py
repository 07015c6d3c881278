"""The plan of a preparation: the inputs, cut into slices that can each be read alone, anywhere, in any order."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow
import pyarrow.parquet

from shared_tokenizer.sources.documents import Document, Rejected, SourceFile, read_file
from shared_tokenizer.sources.readers import MAX_TEXT_BYTES, Piece, is_compressed

SMALLEST_SLICE_BYTES = 4 << 20
LARGEST_SLICE_BYTES = 32 << 20
_BLOCK = 1 << 20


class Part(Protocol):
    """Something that documents can be read from, alone."""

    @property
    def source(self) -> str: ...

    def read(self) -> Iterator[Document | Rejected]: ...


@dataclass(frozen=True)
class FilePart:
    """A piece of a file."""

    file: SourceFile
    piece: Piece

    @property
    def source(self) -> str:
        """The input that the file belongs to."""
        return self.file.source

    def read(self) -> Iterator[Document | Rejected]:
        """The documents in it."""
        return read_file(self.file, self.piece)


@dataclass(frozen=True)
class Slice:
    """Parts that are read together, in this order."""

    index: int
    parts: Sequence[Part]

    def read(self) -> Iterator[tuple[str, Document | Rejected]]:
        """The source and the document of every row."""
        for part in self.parts:
            for document in part.read():
                yield part.source, document


@dataclass(frozen=True)
class Plan:
    """All slices, and the sha256 of what they read (contents and order)."""

    slices: Sequence[Slice]
    fingerprint: str


def plan_files(files: Sequence[SourceFile]) -> Plan:
    """Cut files into slices. The cuts depend on the content alone; every file is read once, for its sha256."""
    total = sum(file.path.stat().st_size for file in files)
    slice_bytes = min(max(SMALLEST_SLICE_BYTES, total // 64), LARGEST_SLICE_BYTES)
    digest = hashlib.sha256()
    parts: list[tuple[FilePart, int]] = []
    for file in files:
        content, pieces = _scan(file, slice_bytes)
        digest.update(f"{file.name}\0{file.format}\0{file.columns}\0".encode() + content)
        parts += [(FilePart(file, piece), size) for piece, size in pieces]
    return Plan(list(_group(parts, slice_bytes)), digest.hexdigest())


def _group(parts: Iterable[tuple[FilePart, int]], slice_bytes: int) -> Iterator[Slice]:
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
    """The sha256 of a file, and the pieces that can be read alone with their sizes in bytes."""
    every = {"text": MAX_TEXT_BYTES, "jsonl": slice_bytes}.get(file.format)
    if every is not None and not is_compressed(file.path):
        return _scan_lines(file.path, every)
    content = _scan_lines(file.path, None)[0]
    if file.format == "parquet":
        return content, _row_groups(file.path, slice_bytes)
    return content, [(Piece(), file.path.stat().st_size)]


def _scan_lines(path: Path, every: int | None) -> tuple[bytes, list[tuple[Piece, int]]]:
    """Cut at the first line end after each `every` bytes."""
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
    """Row groups, gathered up to the size of a slice."""
    try:
        metadata = pyarrow.parquet.read_metadata(path)
    except (pyarrow.ArrowException, OSError):
        return [(Piece(), path.stat().st_size)]  # reading it will say what is wrong
    pieces = []
    start, row, size, rows = 0, 1, 0, 0
    for group in range(metadata.num_row_groups):
        size += metadata.row_group(group).total_byte_size
        rows += metadata.row_group(group).num_rows
        if size >= slice_bytes or group + 1 == metadata.num_row_groups:
            pieces.append((Piece(start, group + 1, row), size))
            start, row, size, rows = group + 1, row + rows, 0, 0
    return pieces
