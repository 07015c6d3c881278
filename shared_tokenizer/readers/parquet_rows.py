"""Parquet -> rows, within a memory that the size of the file bounds: few bytes of it can stand for gigabytes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from shared_tokenizer.readers import rows
from shared_tokenizer.readers.rows import BadRow, LostRestError, Piece, Row, too_long

PARQUET_MAGIC = b"PAR1"
_BATCH_ROWS = 512
_BATCH_BYTES = 128 << 20
# A row counts as so many bytes at least: a file can say "a million times nothing" in a few.
_LEAST_ROW_BYTES = 128


def read_parquet(path: Path, piece: Piece, encoding: str | None) -> Iterator[Row | BadRow]:
    """Yield the rows of row groups. After a damaged one, the rest is lost."""
    number, total = piece.line, None
    left = rows.most_content_bytes(path.stat().st_size)
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            total = file.metadata.num_rows
            groups = range(piece.start, file.num_row_groups if piece.stop is None else piece.stop)
            for group in groups:
                for batch in file.iter_batches(batch_size=_batch_rows(path, file.metadata, group), row_groups=[group]):
                    left -= batch.nbytes + _LEAST_ROW_BYTES * batch.num_rows
                    if left < 0:
                        raise LostRestError(f"decodes to more than {rows.MAX_EXPANSION:,} times the size of the file")
                    for value in _values(batch):
                        yield BadRow(number, too_long()) if value is None else Row(number, value)
                        number += 1
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError, LostRestError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        what = str(error) if isinstance(error, LostRestError) else f"not a complete parquet file: {error}"
        lost = "" if total is None else f"; {max(total - number + 1, 0):,} of {total:,} rows are lost"
        yield BadRow(number if total else 0, what + lost, loses_rest=True)


def _values(batch: pyarrow.RecordBatch) -> Iterator[dict[str, Any] | None]:
    """Yield the rows of a batch as objects, None for one that is too long."""
    if batch.nbytes <= rows.MAX_ROW_BYTES:
        yield from batch.to_pylist()
        return
    for index in range(batch.num_rows):
        row = batch.slice(index, 1)
        yield None if row.nbytes > rows.MAX_ROW_BYTES else row.to_pylist()[0]


def _batch_rows(path: Path, metadata: Any, group: int) -> int:
    """Return rows that are decoded at once: as many as fit into the memory even if all have the longest value.

    A value of a dictionary stands in the file once, for any number of rows; its size is that of the dictionary at
    most.
    """
    found = metadata.row_group(group)
    row_bytes = found.total_byte_size // max(found.num_rows, 1)
    with path.open("rb") as file:
        for index in range(found.num_columns):
            column = found.column(index)
            if column.has_dictionary_page and column.dictionary_page_offset:
                file.seek(column.dictionary_page_offset)
                row_bytes += _page_bytes(file.read(16))
    if row_bytes > _BATCH_BYTES:
        raise LostRestError(f"a dictionary of {row_bytes >> 20:,} MiB, expected at most {_BATCH_BYTES >> 20}")
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(row_bytes, 1)))


def _page_bytes(header: bytes) -> int:
    """Return the decompressed bytes of a page, the second field of its header; 0 where this is no header."""
    # Thrift's compact protocol: a byte of field and type (5: i32), and the number, zigzag in groups of 7 bits.
    position, value = 0, 0
    for _ in range(2):
        if position >= len(header) or header[position] != 0x15:
            return 0
        position, value, shift = position + 1, 0, 0
        while position < len(header):
            value |= (header[position] & 0x7F) << shift
            shift, position = shift + 7, position + 1
            if header[position - 1] < 0x80:
                break
    return (value >> 1) ^ -(value & 1)
