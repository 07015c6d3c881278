"""safetensors files (https://github.com/huggingface/safetensors), written and read one tensor at a time.

The safetensors library checks the header of a file. It neither writes tensor by tensor nor reads bfloat16 into numpy,
so this module does. In memory a bfloat16 or float16 tensor is float32 (an exact widening).
"""

import json
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open

from jaxlm.common.architecture.parameters import StoredTensor
from shared_tokenizer.manifest import named_errors

# dtype -> (safetensors name, numpy dtype on disk)
_CODES = {
    "float32": ("F32", np.dtype("<f4")),
    "bfloat16": ("BF16", np.dtype("<u2")),
    "float16": ("F16", np.dtype("<f2")),
    "uint32": ("U32", np.dtype("<u4")),
    "uint8": ("U8", np.dtype("u1")),
    "int8": ("I8", np.dtype("i1")),
}
_DTYPES = {code: (dtype, on_disk) for dtype, (code, on_disk) in _CODES.items()}
_BEYOND_FLOAT16 = 65520.0  # rounds to infinity
_CHUNK = 2**22  # numbers converted to bytes at a time


def write_tensors(path: Path, tensors: Sequence[StoredTensor], read: Callable[[str], np.ndarray]) -> None:
    """Write a safetensors file. `read(name)` returns a tensor; it is called once per tensor, in order.

    Raises ValueError where an array's shape or dtype is not the one declared, or a float is not finite.
    """
    with named_errors(path), path.open("xb") as file:
        file.write(_header(tensors))
        for tensor in tensors:
            _write_tensor(file, read(tensor.name), tensor)


def file_bytes(tensors: Sequence[StoredTensor]) -> int:
    """Return the bytes of the file that `write_tensors` writes for these tensors."""
    return len(_header(tensors)) + sum(tensor.nbytes for tensor in tensors)


def _header(tensors: Sequence[StoredTensor]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.nbytes
        header[tensor.name] = {
            "dtype": _CODES[tensor.dtype][0],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded


def _write_tensor(file: BinaryIO, array: np.ndarray, tensor: StoredTensor) -> None:
    in_memory = "float32" if tensor.dtype in ("bfloat16", "float16") else tensor.dtype
    if array.shape != tensor.shape or array.dtype != in_memory:
        raise ValueError(
            f"{tensor.name}: found {array.dtype} {list(array.shape)}, expected {in_memory} {list(tensor.shape)}"
        )
    flat = array.reshape(-1)
    # In chunks, so that copies stay small next to a large tensor.
    for start in range(0, flat.size, _CHUNK):
        file.write(_to_bytes(flat[start : start + _CHUNK], tensor))


def _to_bytes(array: np.ndarray, tensor: StoredTensor) -> bytes:
    if array.dtype == np.float32 and not np.isfinite(array).all():
        raise ValueError(f"{tensor.name}: found a number that is not finite; the model has diverged")
    if tensor.dtype == "bfloat16":
        array = _to_bfloat16(array)
    if tensor.dtype == "float16" and array.size and (largest := np.abs(array).max()) >= _BEYOND_FLOAT16:
        raise ValueError(f"{tensor.name}: found {largest:.4g}, which float16 cannot hold; choose bfloat16 or float32")
    return np.ascontiguousarray(array, _CODES[tensor.dtype][1]).tobytes()


def _to_bfloat16(array: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(array).view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16  # in place, since the largest tensor decides the memory of a conversion
    return rounded.astype(np.uint16)


def map_bytes(path: Path, offset: int, size: int) -> np.ndarray:
    """Return `size` bytes of a file as a memory-mapped uint8 array, so that a large file is never in memory at once."""
    if size == 0:  # mmap refuses an empty range
        return np.empty(0, np.uint8)
    # A plain ndarray: nothing downstream needs to know that it is mapped.
    return np.asarray(np.memmap(path, np.uint8, "r", offset, (size,)))


def _widened(array: np.ndarray, dtype: str) -> np.ndarray:
    """Return the numbers of a tensor as they are in memory: float32 for shorter floats."""
    if dtype == "bfloat16":
        bits = array.astype(np.uint32)
        bits <<= 16
        return bits.view(np.float32)
    return array.astype(np.float32) if dtype == "float16" else array


class TensorFile(Mapping[str, np.ndarray]):
    """A safetensors file as a read-only mapping from names to memory-mapped tensors.

    Raises ValueError on construction, naming the file, where it is not a valid and complete safetensors file.
    """

    def __init__(self, path: Path):
        try:
            # The library checks the header: its length, overlapping tensors, and the length of the file.
            with safe_open(path, framework="np"):
                pass
        except (SafetensorError, OSError, ValueError) as error:
            raise ValueError(f"{path}: not a complete safetensors file: {error}; download or save it again") from error
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            pairs = json.loads(file.read(length), object_pairs_hook=list)
        counts = Counter(name for name, _ in pairs)
        if len(counts) < len(pairs):
            twice = min(name for name, count in counts.items() if count > 1)
            raise ValueError(f"{path}: found tensor {twice} twice, expected once; download or save it again")
        self._entries = {name: dict(entry) for name, entry in pairs if name != "__metadata__"}
        for name, entry in self._entries.items():
            if entry["dtype"] not in _DTYPES:
                raise ValueError(
                    f"{path}: tensor {name} has dtype {entry['dtype']}, expected one of {', '.join(_DTYPES)}"
                )
        self._path, self._start = path, 8 + length

    def stored(self, name: str) -> StoredTensor:
        """Return the shape and dtype of a tensor, without reading it."""
        entry = self._entries[name]
        return StoredTensor(name, tuple(entry["shape"]), _DTYPES[entry["dtype"]][0])

    def raw(self, name: str) -> np.ndarray:
        """Return a tensor as it is on disk, memory-mapped: bfloat16 is uint16 bits."""
        entry = self._entries[name]
        start, end = entry["data_offsets"]
        data = map_bytes(self._path, self._start + start, end - start)
        return data.view(_DTYPES[entry["dtype"]][1]).reshape(entry["shape"])

    def __getitem__(self, name: str) -> np.ndarray:
        return _widened(self.raw(name), self.stored(name).dtype)

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return some rows of a tensor, without mapping the others: those of a large one would count as memory."""
        entry = self._entries[name]
        dtype, on_disk = _DTYPES[entry["dtype"]]
        count, *rest = entry["shape"]
        row_bytes = (entry["data_offsets"][1] - entry["data_offsets"][0]) // count
        offset = self._start + entry["data_offsets"][0] + start * row_bytes
        data = map_bytes(self._path, offset, (min(stop, count) - start) * row_bytes)
        return _widened(data.view(on_disk).reshape(-1, *rest), dtype)

    def __contains__(self, name: object) -> bool:  # Mapping's own would read the tensor
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
