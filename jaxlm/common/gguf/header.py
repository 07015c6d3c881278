"""The header of a GGUF file, read value by value: counts, metadata, and the entries of the tensors.

Every count and length is checked against the bytes of the file before anything is allocated.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import struct
from typing import Any, NamedTuple

import numpy as np
from gguf.constants import GGUFValueType

from jaxlm.common.gguf.types import TensorType, tensor_type

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMENSIONS = 4
# Far above the counts of any model. They bound the time that a hostile header can take.
MAX_ENTRIES = 2**16
MAX_ARRAY_ELEMENTS = 2**22
MAX_ARRAY_DEPTH = 4

# Format letters that struct and numpy share.
_SCALARS = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.BOOL: "<?",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT64: "<d",
}
_LENGTH = struct.Struct("<Q")


class TensorEntry(NamedTuple):
    """The entry of a tensor in the header."""

    shape: tuple[int, ...]
    """Shape with rows first, as in numpy; the file has the row length first."""
    type: TensorType
    offset: int
    """Bytes from the start of the data."""


class HeaderReader:
    """A reader of a header, from its start. It never reads beyond the end of the file.

    Every method raises ValueError on a value that is out of range or incomplete.
    """

    def __init__(self, data: memoryview):
        self.position = 0
        self._data = data
        self._elements_left = MAX_ARRAY_ELEMENTS

    def counts(self) -> tuple[int, int]:
        """Read magic and version, and return the number of tensors and the number of metadata pairs that follow."""
        magic = bytes(self._take(4))
        if magic != MAGIC:
            raise ValueError(f"it starts with {magic!r}, expected {MAGIC!r}")
        version = self._scalar("<I")
        if version not in VERSIONS:
            if version & 0xFFFF == 0:
                raise ValueError("it is big-endian; convert it to little-endian with gguf-convert-endian")
            raise ValueError(f"found version {version}, expected {' or '.join(map(str, VERSIONS))}")
        tensors, pairs = self._scalar("<Q"), self._scalar("<Q")
        for what, count in (("tensors", tensors), ("metadata pairs", pairs)):
            if count > MAX_ENTRIES:
                raise ValueError(f"found a count of {count:,} {what}, expected at most {MAX_ENTRIES:,}")
        return tensors, pairs

    def pairs(self, count: int) -> dict[str, Any]:
        """Read and return the metadata by key: int, float, bool, str, or lists of these."""
        found: dict[str, Any] = {}
        for _ in range(count):
            key = self._string()
            if not key or key in found:
                raise ValueError(f"metadata key {key!r} is {'in the file twice' if key else 'empty'}")
            try:
                found[key] = self._value()
            except ValueError as error:
                raise ValueError(f"metadata {key}: {error}") from error
        return found

    def entries(self, count: int) -> dict[str, TensorEntry]:
        """Read and return the entries of the tensors by name."""
        found: dict[str, TensorEntry] = {}
        for _ in range(count):
            name = self._string()
            if not name or name in found:
                raise ValueError(f"tensor {name!r} is {'in the file twice' if name else 'without a name'}")
            try:
                found[name] = self._entry()
            except ValueError as error:
                raise ValueError(f"tensor {name}: {error}") from error
        return found

    def _take(self, count: int) -> memoryview:
        start, self.position = self.position, self.position + count
        if self.position > len(self._data):
            raise ValueError(f"byte {start}: expected {count:,} more bytes, the file has {len(self._data) - start:,}")
        return self._data[start : self.position]

    def _scalar(self, letter: str) -> Any:
        return struct.unpack(letter, self._take(struct.calcsize(letter)))[0]

    def _string(self) -> str:
        return str(self._take(self._scalar("<Q")), "utf-8")

    def _value(self) -> Any:
        kind = GGUFValueType(self._scalar("<I"))
        if kind == GGUFValueType.STRING:
            return self._string()
        if kind == GGUFValueType.ARRAY:
            return self._array(1)
        return self._scalar(_SCALARS[kind])

    def _array(self, depth: int) -> list:
        kind, count = GGUFValueType(self._scalar("<I")), self._scalar("<Q")
        self._elements_left -= count
        if self._elements_left < 0 or depth > MAX_ARRAY_DEPTH:
            raise ValueError(
                f"found an array of {count:,} at depth {depth}, expected at most {MAX_ARRAY_ELEMENTS:,} elements in "
                f"all arrays and a depth of {MAX_ARRAY_DEPTH}"
            )
        if kind == GGUFValueType.STRING:
            return self._strings(count)
        if kind == GGUFValueType.ARRAY:
            return [self._array(depth + 1) for _ in range(count)]
        dtype = np.dtype(_SCALARS[kind])
        return np.frombuffer(self._take(count * dtype.itemsize), dtype).tolist()

    def _strings(self, count: int) -> list[str]:
        """Read many strings at once. One by one is too slow for a vocabulary of hundreds of thousands."""
        data, position, end = self._data, self.position, len(self._data)
        found = []
        for _ in range(count):
            start = position + _LENGTH.size
            position = start + _LENGTH.unpack_from(data, position)[0] if start <= end else start
            if position > end:
                raise ValueError(f"string {len(found)} of {count:,} ends beyond the end of the file")
            found.append(str(data[start:position], "utf-8"))
        self.position = position
        return found

    def _entry(self) -> TensorEntry:
        dimensions = self._scalar("<I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise ValueError(f"found {dimensions:,} dimensions, expected 1..{MAX_DIMENSIONS}")
        shape = tuple(self._scalar("<Q") for _ in range(dimensions))[::-1]
        return TensorEntry(shape, tensor_type(self._scalar("<I")), self._scalar("<Q"))
