"""The digests of a file in chunks, by which its damage is found to a range of bytes."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class FileDigests:
    """A file as it was when it came onto the shelf."""

    bytes: int
    sha256: str
    chunks: tuple[str, ...]
    """sha256 of each piece of CHUNK_BYTES, as hex."""


def copy_with_digests(source: Path, destination: Path) -> FileDigests:
    """Copy a file, flush it to disk and return the digests of the bytes that were written."""
    whole, chunks, size = hashlib.sha256(), [], 0
    with source.open("rb") as reader, destination.open("xb") as writer:
        for chunk in _chunks(reader):
            writer.write(chunk)
            whole.update(chunk)
            chunks.append(hashlib.sha256(chunk).hexdigest())
            size += len(chunk)
        writer.flush()
        os.fsync(writer.fileno())
    return FileDigests(size, whole.hexdigest(), tuple(chunks))


def damage(path: Path, expected: FileDigests) -> list[str]:
    """Return in words where a file differs: missing, of another length, and the ranges of bytes that differ."""
    if not path.is_file():
        return ["missing"]
    found: list[str] = []
    if (size := path.stat().st_size) != expected.bytes:
        found.append(f"found {size:,} bytes, expected {expected.bytes:,}")
    with path.open("rb") as file:
        differs = [
            number
            for number, (chunk, digest) in enumerate(zip(_chunks(file), expected.chunks, strict=False))
            if hashlib.sha256(chunk).hexdigest() != digest
        ]
    last = min(size, expected.bytes) - 1
    for first, end in _runs(differs):
        begin = first * CHUNK_BYTES
        if begin <= last:
            found.append(f"bytes {begin:,} to {min(end * CHUNK_BYTES - 1, last):,} differ")
    return found


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Yield the first number of each run of neighbours, and the one after its last."""
    start = 0
    for index in range(1, len(numbers) + 1):
        if index == len(numbers) or numbers[index] != numbers[index - 1] + 1:
            yield numbers[start], numbers[index - 1] + 1
            start = index
