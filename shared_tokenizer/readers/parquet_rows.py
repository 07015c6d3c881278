"""Parquet -> rows, within a memory that the size of the file bounds: few bytes of it can stand for gigabytes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.compute
import pyarrow.parquet

from shared_tokenizer.readers import rows
from shared_tokenizer.readers.encodings import kind_of_no_text
from shared_tokenizer.readers.parquet_footer import dictionary_bytes
from shared_tokenizer.readers.rows import BadRow, LostRestError, Piece, Row, too_long
from shared_tokenizer.readers.streams import first_bytes

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
            dictionaries = _dictionaries(path, file.num_row_groups)
            for group in groups:
                batch_rows = _batch_rows(file.metadata.row_group(group), dictionaries[group])
                for batch in file.iter_batches(batch_size=batch_rows, row_groups=[group]):
                    left -= _bytes(batch) + _LEAST_ROW_BYTES * batch.num_rows
                    if left < 0:
                        raise LostRestError(f"decodes to more than {rows.MAX_EXPANSION:,} times the size of the file")
                    for value in _values(batch):
                        yield BadRow(number, too_long()) if value is None else Row(number, value)
                        number += 1
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError, LostRestError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        kind = kind_of_no_text(first_bytes(path, 1 << 9))
        why = error if kind is None else f"looks like {kind}"
        what = str(error) if isinstance(error, LostRestError) else f"not a complete parquet file: {why}"
        lost = "" if total is None else f"; {max(total - number + 1, 0):,} of {total:,} rows are lost"
        yield BadRow(number if total else 0, what + lost, loses_rest=True)


def _values(batch: pyarrow.RecordBatch) -> Iterator[dict[str, Any] | None]:
    """Yield the rows of a batch as objects, None for one that is too long."""
    if _bytes(batch) <= rows.MAX_ROW_BYTES:
        yield from batch.to_pylist()
        return
    for index in range(batch.num_rows):
        row = batch.slice(index, 1)
        yield None if _bytes(row) > rows.MAX_ROW_BYTES else row.to_pylist()[0]


def _bytes(batch: pyarrow.RecordBatch) -> int:
    """Return the bytes of the values of a batch, where a value of a dictionary counts as often as it stands there."""
    total = 0
    for column in batch.columns:
        if isinstance(column, pyarrow.DictionaryArray):
            total += column.indices.nbytes
            if pyarrow.types.is_string(column.type.value_type) or pyarrow.types.is_large_string(column.type.value_type):
                functions: Any = pyarrow.compute  # made when it is imported, so no checker knows them
                lengths = functions.binary_length(column.dictionary).take(column.indices)
                total += functions.sum(lengths).as_py() or 0
        else:
            total += column.nbytes
    return total


def _dictionaries(path: Path, groups: int) -> list[int]:
    """Return the bytes of the dictionaries of each row group."""
    try:
        found = dictionary_bytes(path)
    except ValueError as error:
        raise LostRestError(f"not a complete parquet file: {error}") from error
    if len(found) != groups:
        raise LostRestError(f"not a complete parquet file: found {len(found)} row groups, expected {groups}")
    return found


def _batch_rows(group: Any, dictionaries: int) -> int:
    """Return rows that are decoded at once: as many as fit into the memory even if all have the longest value.

    A value of a dictionary stands in the file once, for any number of rows; its size is that of the dictionary at
    most.
    """
    row_bytes = max(0, group.total_byte_size) // max(group.num_rows, 1) + dictionaries
    if row_bytes > _BATCH_BYTES:
        raise LostRestError(f"a dictionary of {row_bytes >> 20:,} MiB, expected at most {_BATCH_BYTES >> 20}")
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(row_bytes, 1)))
