"""The dictionaries of a parquet file, by its footer.

Arrow ends the whole process where the description of a column is damaged and Python asks for it, so it is not asked.
"""

from pathlib import Path
from typing import Any

PARQUET_MAGIC = b"PAR1"
# Fields of parquet.thrift: FileMetaData.row_groups, RowGroup.columns, ColumnChunk.meta_data, and of ColumnMetaData.
_ROW_GROUPS, _COLUMNS, _META_DATA, _DICTIONARY_OFFSET = 4, 1, 3, 11
# PageHeader.uncompressed_page_size.
_PAGE_BYTES = 2
_MAX_PAGE_HEADER = 64
_MAX_DEPTH = 16


def dictionary_bytes(path: Path) -> list[int]:
    """Return, per row group, the decompressed bytes of its dictionaries. Raises ValueError on a damaged footer."""
    with path.open("rb") as file:
        size = path.stat().st_size
        file.seek(max(0, size - 8))
        length, magic = int.from_bytes(file.read(4), "little"), file.read(4)
        if magic != PARQUET_MAGIC or length > size - 8:
            raise ValueError("found no footer at the end")
        file.seek(size - 8 - length)
        footer = _Thrift(file.read(length)).struct()
        found = []
        for group in _list(footer, _ROW_GROUPS):
            total = 0
            for column in _list(group, _COLUMNS):
                description = column.get(_META_DATA)
                if not isinstance(description, dict):
                    raise ValueError("found a column without a description")
                offset = description.get(_DICTIONARY_OFFSET)
                if isinstance(offset, int) and 0 < offset < size:
                    file.seek(offset)
                    total += _page_bytes(file.read(_MAX_PAGE_HEADER))
            found.append(total)
        return found


def _page_bytes(header: bytes) -> int:
    """Return the decompressed bytes of a page, 0 where this is the header of none."""
    try:
        found = _Thrift(header).struct(until=_PAGE_BYTES).get(_PAGE_BYTES)
    except ValueError:
        return 0
    return found if isinstance(found, int) and found > 0 else 0


def _list(found: Any, field: int) -> list[Any]:
    value = found.get(field) if isinstance(found, dict) else None
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError("found another structure in the footer")
    return value


class _Thrift:
    """Values of Thrift's compact protocol. Every method raises ValueError where the content ends before."""

    def __init__(self, content: bytes):
        self._content, self._position, self._depth = content, 0, 0

    def struct(self, until: int | None = None) -> dict[int, Any]:
        """Read a struct: its values by field. `until` names the last field that is wanted."""
        found: dict[int, Any] = {}
        field = 0
        while kind := self._byte():
            step = kind >> 4
            field = field + step if step else self._signed()
            found[field] = self._value(kind & 0xF)
            if field == until:
                break
        return found

    def _value(self, kind: int) -> Any:
        if kind in (1, 2):  # the kind of a field is its value
            return kind == 1
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):
            return self._signed()
        if kind == 7:
            return self._bytes(8)
        if kind == 8:
            return self._bytes(self._unsigned())
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise ValueError("found a footer that is nested without end")
        found = self._nested(kind)
        self._depth -= 1
        return found

    def _nested(self, kind: int) -> Any:
        if kind == 12:
            return self.struct()
        if kind in (9, 10):
            header = self._byte()
            count = header >> 4 if header >> 4 < 15 else self._unsigned()
            return [self._item(header & 0xF) for _ in range(self._at_most(count))]
        if kind == 11:
            count = self._at_most(self._unsigned())
            kinds = self._byte() if count else 0
            return [(self._item(kinds >> 4), self._item(kinds & 0xF)) for _ in range(count)]
        raise ValueError(f"found a value of kind {kind}, which there is not")

    def _item(self, kind: int) -> Any:
        return self._byte() if kind in (1, 2) else self._value(kind)

    def _at_most(self, count: int) -> int:
        """Return a count of items, each of at least a byte."""
        if count > len(self._content) - self._position:
            raise ValueError("found more items than bytes in the footer")
        return count

    def _signed(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)

    def _unsigned(self) -> int:
        value = shift = 0
        while (byte := self._byte()) >= 0x80:
            value |= (byte & 0x7F) << shift
            shift += 7
            if shift > 63:
                raise ValueError("found a number of too many bytes")
        return value | byte << shift

    def _byte(self) -> int:
        return self._bytes(1)[0]

    def _bytes(self, count: int) -> bytes:
        start = self._position
        if start + count > len(self._content):
            raise ValueError("found the end of the footer within a value")
        self._position = start + count
        return self._content[start : self._position]
