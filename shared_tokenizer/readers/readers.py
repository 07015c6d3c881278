"""One file of any format -> its rows, in memory that does not grow with the file.

A row is a text (of a text file) or an object (of any other format). An unreadable row is returned as a BadRow; no row
is dropped silently.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from shared_tokenizer.readers import rows
from shared_tokenizer.readers.csv_rows import read_csv, read_tsv
from shared_tokenizer.readers.encodings import explain_not_utf8
from shared_tokenizer.readers.json_values import read_json, read_lines
from shared_tokenizer.readers.parquet_footer import PARQUET_MAGIC
from shared_tokenizer.readers.parquet_rows import read_parquet
from shared_tokenizer.readers.rows import BadRow, LostRestError, Piece, Row
from shared_tokenizer.readers.streams import first_bytes, open_content

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


def format_of(path: Path) -> str | None:
    """Return the format of a file: text, jsonl, json, csv, tsv or parquet; None where it cannot be read.

    The extension (before .gz or .zst) decides; parquet is also found by its content.
    """
    suffix = suffix_of(path)
    if suffix in ROW_SUFFIXES:
        return ROW_SUFFIXES[suffix]
    if first_bytes(path).startswith(PARQUET_MAGIC):
        return "parquet"
    return "text" if suffix in TEXT_SUFFIXES else None


def suffix_of(path: Path) -> str:
    """Return the extension of a name in small letters, without that of a compression; empty where there is none."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSION_SUFFIXES:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def read_rows(
    path: Path, file_format: str, piece: Piece | None = None, encoding: str | None = None
) -> Iterator[Row | BadRow]:
    """Yield the rows of a file or of a piece of it. Raises OSError where the file cannot be opened or read.

    `encoding` is that of a text without a byte-order mark, None for UTF-8. Where the rest of the file cannot be read,
    the last row is a bad one that says so.
    """
    number = (piece.line if piece else 1) - 1
    try:
        for row in _READERS[file_format](path, piece or Piece(), encoding):
            number = row.number
            yield row
    except LostRestError as error:
        yield BadRow(number + 1, f"{error}; all that follows is lost", loses_rest=True)
    except MemoryError:
        yield BadRow(number + 1, "needs more memory than there is; all that follows is lost", loses_rest=True)
    except OSError as error:
        if error.errno is not None:
            raise error if error.filename else OSError(error.errno, error.strerror, str(path)) from error
        # Errors of arrow have no errno.
        yield BadRow(number + 1, f"damaged compression: {error}; all that follows is lost", loses_rest=True)


def read_text(path: Path, piece: Piece, encoding: str | None) -> Iterator[Row | BadRow]:
    """Yield a file as one text, or as several of about MAX_TEXT_BYTES, cut at line ends or else between characters."""
    most = rows.MAX_TEXT_BYTES
    with open_content(path, encoding, piece.start) as (file, start):
        while block := file.read(most if piece.stop is None else min(most, piece.stop - start)):
            if len(block) >= most:
                block += file.readline(most)
                while (head := file.peek(1)[:1]) and 0x80 <= head[0] < 0xC0:
                    block += file.read(1)
            try:
                yield Row(start, _without_marks(block.decode("utf-8")))
            except UnicodeDecodeError as error:
                yield BadRow(0, explain_not_utf8(block, error.start, f"{start + error.start}"))
            start += len(block)


def _without_marks(text: str) -> str:
    """Return a text without the byte-order marks that files leave at the start of a line when they are joined."""
    if "\ufeff" not in text:
        return text
    return text.removeprefix("\ufeff").replace("\n\ufeff", "\n").replace("\r\ufeff", "\r")


_READERS: dict[str, Callable[[Path, Piece, str | None], Iterator[Row | BadRow]]] = {
    "text": read_text,
    "jsonl": read_lines,
    "json": read_json,
    "csv": read_csv,
    "tsv": read_tsv,
    "parquet": read_parquet,
}
