"""Parquet -> rows, within a memory that the size of the file bounds: few bytes of it can stand for gigabytes."""

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.compute
import pyarrow.parquet

from shared_tokenizer.readers import rows
from shared_tokenizer.readers.encodings import kind_of_no_text
from shared_tokenizer.readers.parquet_footer import PARQUET_MAGIC, dictionary_bytes
from shared_tokenizer.readers.rows import BadRow, LostRestError, Piece, Row, too_long
from shared_tokenizer.readers.streams import first_bytes

# What pyarrow raises for a value that Python cannot hold; for an unknown time zone it is a KeyError.
_ODD_VALUES = (pyarrow.ArrowException, ValueError, OverflowError, KeyError)
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
            _refuse_twice(file.schema_arrow.names)
            groups = range(piece.start, file.num_row_groups if piece.stop is None else piece.stop)
            dictionaries = _dictionaries(path, file.num_row_groups)
            for group in groups:
                batch_rows = _batch_rows(file.metadata.row_group(group), dictionaries[group])
                for batch in file.iter_batches(batch_size=batch_rows, row_groups=[group]):
                    left -= _bytes(batch) + _LEAST_ROW_BYTES * batch.num_rows
                    if left < 0:
                        raise LostRestError(f"decodes to more than {rows.MAX_EXPANSION:,} times the size of the file")
                    for value in _values(batch):
                        yield BadRow(number, value) if isinstance(value, str) else Row(number, value)
                        number += 1
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError, LostRestError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        first = first_bytes(path, 1 << 9)
        kind = None if first.startswith(PARQUET_MAGIC) else kind_of_no_text(first)
        why = error if kind is None else f"looks like {kind}"
        what = str(error) if isinstance(error, LostRestError) else f"not a complete parquet file: {why}"
        lost = "" if total is None else f"; {max(total - number + 1, 0):,} of {total:,} rows are lost"
        yield BadRow(number if total else 0, what + lost, loses_rest=True)


def _refuse_twice(names: Sequence[str]) -> None:
    """Raise LostRestError where two columns have one name: only one of them would be read."""
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise LostRestError(f"found the column {twice!r} twice, expected each name once")


def _values(batch: pyarrow.RecordBatch) -> Iterator[dict[str, Any] | str]:
    """Yield the rows of a batch as objects; of one that cannot be read, the reason."""
    batch = _without_times(batch)
    if _bytes(batch) <= rows.MAX_ROW_BYTES:
        found = None
        with contextlib.suppress(*_ODD_VALUES):
            found = batch.to_pylist()
        if found is not None:
            yield from found
            return
    for index in range(batch.num_rows):
        row = batch.slice(index, 1)
        yield too_long() if _bytes(row) > rows.MAX_ROW_BYTES else _row(row)


def _row(row: pyarrow.RecordBatch) -> dict[str, Any] | str:
    try:
        return row.to_pylist()[0]
    except _ODD_VALUES:
        for name, column in zip(row.schema.names, row.columns, strict=True):
            try:
                column.to_pylist()
            except _ODD_VALUES as error:
                return f"column {name!r}: {error}"
        raise


def _without_times(batch: pyarrow.RecordBatch) -> pyarrow.RecordBatch:
    """Return a batch whose times are numbers: no text is in them, and Python cannot hold all of them."""
    columns = [column.cast(_integer(column.type)) if _is_time(column.type) else column for column in batch.columns]
    return pyarrow.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _is_time(kind: pyarrow.DataType) -> bool:
    return pyarrow.types.is_temporal(kind) and not pyarrow.types.is_interval(kind)


def _integer(kind: pyarrow.DataType) -> pyarrow.DataType:
    return pyarrow.int32() if kind.bit_width == 32 else pyarrow.int64()


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
