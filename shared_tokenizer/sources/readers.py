"""One file of any format -> its rows, in memory that does not grow with the file.

A row is a text (of a text file) or an object (of any other format). An unreadable row is returned as a BadRow; no row
is dropped silently.
"""

import contextlib
import csv
import io
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ijson
import pyarrow
import pyarrow.parquet

MAX_ROW_BYTES = 16 << 20
MAX_DEPTH = 100
# A longer text file becomes several documents, cut at line ends.
MAX_TEXT_BYTES = 8 << 20
_TEXT = (
    ".txt .text .md .rst .tex .py .pyi .js .jsx .ts .tsx .c .h .cc .cpp .hpp .cs .rs .go .java .kt .swift .rb .php .pl "
    ".lua .r .jl .scala .hs .ml .sql .html .htm .xml .css .sh .toml .yaml .yml"
)
TEXT_SUFFIXES = frozenset(_TEXT.split())
ROW_SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
}
COMPRESSION_SUFFIXES = frozenset([".gz", ".zst", ".zstd"])
_COMPRESSIONS = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd"}
_PARQUET = b"PAR1"


@dataclass(frozen=True)
class Row:
    """A text or an object. `number` is its line or row in the file, from 1; 0 stands for the whole file."""

    number: int
    value: Any


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be read, and the reason."""

    number: int
    reason: str


@dataclass(frozen=True)
class Piece:
    """A part of a file: bytes `start` to `stop`, or row groups of parquet. None stands for the end of the file.

    `line` is the number of its first line or row, from 1.
    """

    start: int = 0
    stop: int | None = None
    line: int = 1


def format_of(path: Path) -> str | None:
    """Return the format of a file: text, jsonl, json, csv, tsv or parquet; None where it cannot be read.

    The extension (before .gz or .zst) decides; parquet is also found by its content.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSION_SUFFIXES:
        suffixes.pop()
    suffix = suffixes[-1] if suffixes else ""
    if suffix in ROW_SUFFIXES:
        return ROW_SUFFIXES[suffix]
    if _first_bytes(path).startswith(_PARQUET):
        return "parquet"
    return "text" if suffix in TEXT_SUFFIXES else None


def is_compressed(path: Path) -> bool:
    """Return True if the content is gzip or zstd; the name does not matter."""
    return _compression(path) is not None


def _compression(path: Path) -> str | None:
    first = _first_bytes(path)
    return next((name for name, magic in _COMPRESSIONS.items() if first.startswith(magic)), None)


def read_rows(path: Path, file_format: str, piece: Piece | None = None) -> Iterator[Row | BadRow]:
    """Yield the rows of a file or of a piece of it. Raises OSError where the file cannot be opened."""
    reader = _READERS[file_format]
    try:
        yield from reader(path, piece or Piece())
    except OSError as error:
        if error.errno is not None:
            raise
        yield BadRow(0, f"damaged compression: {error}")  # errors of arrow have no errno


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)


@contextlib.contextmanager
def _open(path: Path, piece: Piece) -> Iterator[tuple[io.BufferedReader, int]]:
    """Open the decompressed content at the start of the piece, after a byte-order mark. Yields file and position."""
    compression = _compression(path)
    with path.open("rb") as raw:
        file: Any = raw
        if compression is not None:
            # Unlike the stream readers of gzip and zstandard, arrow's raises an error on a truncated file.
            stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(raw), compression)
            file = io.BufferedReader(cast(io.RawIOBase, stream))
        position = piece.start
        if position:
            file.seek(position)
        elif file.peek(3)[:3] == b"\xef\xbb\xbf":
            position = len(file.read(3))
        yield file, position


def _read_text(path: Path, piece: Piece) -> Iterator[Row | BadRow]:
    """Yield a file as one text, or as several of about MAX_TEXT_BYTES, cut at line ends or else between characters."""
    with _open(path, piece) as (file, start):
        while block := file.read(_text_bytes(piece, start)):
            if len(block) >= MAX_TEXT_BYTES:
                block += file.readline(MAX_TEXT_BYTES)
                while (head := file.peek(1)[:1]) and 0x80 <= head[0] < 0xC0:
                    block += file.read(1)
            try:
                yield Row(start, block.decode("utf-8"))
            except UnicodeDecodeError as error:
                yield BadRow(0, f"not UTF-8 at byte {start + error.start}")
            start += len(block)


def _text_bytes(piece: Piece, start: int) -> int:
    return MAX_TEXT_BYTES if piece.stop is None else min(MAX_TEXT_BYTES, piece.stop - start)


def _read_lines(path: Path, piece: Piece) -> Iterator[Row | BadRow]:
    """Yield one JSON object per line."""
    number = piece.line - 1
    with _open(path, piece) as (file, position):
        while piece.stop is None or position < piece.stop:
            line = file.readline(MAX_ROW_BYTES + 1)
            if not line:
                return
            number, position = number + 1, position + len(line)
            if len(line) > MAX_ROW_BYTES:
                position += _skip_line(file, line)
                yield BadRow(number, f"longer than {MAX_ROW_BYTES >> 20} MiB")
            elif line.strip():
                yield _parse_line(line, number)


def _skip_line(file: io.BufferedReader, line: bytes) -> int:
    skipped = 0
    while line and not line.endswith(b"\n"):
        line = file.readline(MAX_ROW_BYTES)
        skipped += len(line)
    return skipped


def _parse_line(line: bytes, number: int) -> Row | BadRow:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return BadRow(number, f"not UTF-8 at byte {error.start} of the line")
    except (ValueError, RecursionError) as error:
        return BadRow(number, f"not JSON: {error}")
    return _object(value, number)


def _object(value: Any, number: int) -> Row | BadRow:
    if isinstance(value, dict):
        return Row(number, value)
    return BadRow(number, f"found a JSON {type(value).__name__}, expected an object")


def _read_json(path: Path, piece: Piece) -> Iterator[Row | BadRow]:
    """Yield the objects of an array, one object per line, or one object over several lines."""
    with _open(path, piece) as (file, _):
        start = file.peek(1 << 12).lstrip()[:1]
        if start == b"[":
            yield from _read_array(file)
            return
        first = file.readline(MAX_ROW_BYTES + 1)
        if start == b"{" and isinstance(_parse_line(first, 1), BadRow):
            whole = first + file.read(MAX_ROW_BYTES)
            parsed = _parse_line(whole, 1)
            if isinstance(parsed, Row):
                yield parsed
                return
    yield from _read_lines(path, piece)


def _read_array(file: io.BufferedReader) -> Iterator[Row | BadRow]:
    number = 0
    try:
        for value in _array_values(file):
            number += 1
            yield _object(value, number)
    except (ijson.JSONError, ValueError, OverflowError) as error:
        # The parser cannot continue after an error.
        yield BadRow(number + 1, f"not JSON from here on: {' '.join(str(error).split())}")


def _array_values(file: io.BufferedReader) -> Iterator[Any]:
    """Yield the values of an array. Raises ValueError where they are nested deeper than MAX_DEPTH."""
    depth, builder = 0, ijson.ObjectBuilder()
    for event, value in ijson.basic_parse(file, use_float=True):
        begins, ends = event.startswith("start_"), event.startswith("end_")
        depth -= ends
        if depth == 1 and not ends:
            builder = ijson.ObjectBuilder()
        if depth > 0:
            builder.event(event, value)
        if depth == 1 and not begins:
            yield builder.value
        depth += begins
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} deep")


def _read_csv(path: Path, piece: Piece, delimiter: str = ",") -> Iterator[Row | BadRow]:
    csv.field_size_limit(min(MAX_ROW_BYTES, sys.maxsize))
    with _open(path, piece) as (file, _):
        # Invalid bytes become surrogates, so that the error names the row that holds them.
        text = io.TextIOWrapper(file, "utf-8", errors="surrogateescape", newline="")
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        header: list[str] | None = None
        while True:
            line = reader.line_num + 1
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield BadRow(line, f"not CSV: {error}")
                continue
            if header is None:
                header = values
                if problem := _header_problem(header, delimiter):
                    yield BadRow(line, problem)
                    return
            elif values:
                yield _csv_row(header, values, line)


def _header_problem(header: list[str], delimiter: str) -> str | None:
    if len(set(header)) < len(header):
        return f"found a column name twice in the header {header}, expected each name once"
    if len(header) == 1 and ";" in header[0]:
        return f"found columns separated by ';', expected {delimiter!r}; save the file with that separator"
    return None


def _csv_row(header: list[str], values: list[str], number: int) -> Row | BadRow:
    if len(values) != len(header):
        return BadRow(number, f"found {len(values)} fields, expected the {len(header)} of the header")
    if any("\udc80" <= character <= "\udcff" for value in values for character in value):
        return BadRow(number, "not UTF-8")
    return Row(number, dict(zip(header, values, strict=True)))


def _read_tsv(path: Path, piece: Piece) -> Iterator[Row | BadRow]:
    return _read_csv(path, piece, "\t")


def _read_parquet(path: Path, piece: Piece) -> Iterator[Row | BadRow]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            groups = range(piece.start, file.num_row_groups if piece.stop is None else piece.stop)
            number = piece.line
            for batch in file.iter_batches(batch_size=512, row_groups=groups):
                for value in batch.to_pylist():
                    yield Row(number, value)
                    number += 1
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        yield BadRow(0, f"not a complete parquet file: {error}")


_READERS: dict[str, Callable[[Path, Piece], Iterator[Row | BadRow]]] = {
    "text": _read_text,
    "jsonl": _read_lines,
    "json": _read_json,
    "csv": _read_csv,
    "tsv": _read_tsv,
    "parquet": _read_parquet,
}
