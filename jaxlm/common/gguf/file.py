"""A GGUF file, read without trust in its content: metadata, and tensors that are mapped and dequantized on use.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.common.artifact.safetensors import map_bytes
from jaxlm.common.gguf.header import HeaderReader, TensorEntry
from jaxlm.common.gguf.types import F32, Q2_0, Q2_0_TYPES, TensorType, can_dequantize, dequantize_blocks

ALIGNMENT_KEY = "general.alignment"
DEFAULT_ALIGNMENT = 32
LARGEST_ALIGNMENT = 2**16
# Numbers dequantized at a time, which bounds the temporary memory of the library.
CHUNK = 2**22


@dataclass(frozen=True)
class GGUFTensor:
    """The position and type of a tensor in a GGUF file."""

    shape: tuple[int, ...]
    type: TensorType
    offset: int
    """Bytes from the start of the file."""
    nbytes: int


class GGUFFile:
    """A little-endian GGUF file of version 2 or 3, opened for reading.

    Raises ValueError on construction, naming the file and its fault, where the file is not valid and complete. Tensors
    have to follow one another from the end of the header to the end of the file.
    """

    metadata: Mapping[str, Any]
    """Values by key: int, float, bool, str, or lists of these."""
    tensors: Mapping[str, GGUFTensor]

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            size = self.path.stat().st_size
            header = HeaderReader(map_bytes(self.path, 0, size).data)
            tensor_count, pair_count = header.counts()
            self.metadata = header.pairs(pair_count)
            entries = header.entries(tensor_count)
            self.tensors = _locate(entries, header.position, _alignment(self.metadata), size)
        except (ValueError, OSError) as error:
            raise ValueError(f"{self.path}: not a complete GGUF file: {error}") from error

    def blocks(self, name: str) -> np.ndarray:
        """Return the bytes of a tensor, memory-mapped: uint8 `[..., bytes per row]`."""
        tensor = self.tensors[name]
        return map_bytes(self.path, tensor.offset, tensor.nbytes).reshape(*tensor.shape[:-1], -1)

    def read(self, name: str) -> np.ndarray:
        """Return a tensor as float32, memory-mapped where the file holds float32.

        Raises ValueError where its type cannot be dequantized or a number is not finite.
        """
        tensor = self.tensors[name]
        if not can_dequantize(tensor.type):
            raise ValueError(f"{self.path}: tensor {name}: the gguf library cannot dequantize {tensor.type.name}")
        if tensor.type == F32:
            array = self.blocks(name).view("<f4")
        else:
            array = _dequantize_in_chunks(self.blocks(name), tensor)
        if not np.isfinite(array).all():
            raise ValueError(f"{self.path}: tensor {name}: found a number that is not finite")
        return array


def _dequantize_in_chunks(blocks: np.ndarray, tensor: GGUFTensor) -> np.ndarray:
    rows = blocks.reshape(-1, blocks.shape[-1])
    array = np.empty((len(rows), tensor.shape[-1]), np.float32)
    step = max(1, CHUNK // tensor.shape[-1])
    with np.errstate(all="ignore"):  # the caller checks that numbers are finite
        for start in range(0, len(rows), step):
            array[start : start + step] = dequantize_blocks(rows[start : start + step], tensor.type)
    return array.reshape(tensor.shape)


def _alignment(metadata: Mapping[str, Any]) -> int:
    alignment = metadata.get(ALIGNMENT_KEY, DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 0 < alignment <= LARGEST_ALIGNMENT or alignment & (alignment - 1):
        raise ValueError(f"{ALIGNMENT_KEY}: found {alignment!r}, expected a power of two up to {LARGEST_ALIGNMENT}")
    return alignment


def _locate(
    entries: Mapping[str, TensorEntry], header_bytes: int, alignment: int, file_bytes: int
) -> dict[str, GGUFTensor]:
    """Return the position of each tensor in the data, which reaches from the header to the end of the file."""
    start = end = _align(header_bytes, alignment) if entries else header_bytes
    entries = _with_q2_0_blocks(entries, alignment, file_bytes - start)
    found = {}
    for name, entry in entries.items():
        expected = _align(end, alignment) - start
        if entry.offset != expected:
            raise ValueError(
                f"tensor {name}: found offset {entry.offset:,}, expected {expected:,}, just after the tensor before it"
            )
        tensor = GGUFTensor(entry.shape, entry.type, start + entry.offset, _entry_bytes(name, entry))
        end = tensor.offset + tensor.nbytes
        if end > file_bytes:
            raise ValueError(f"tensor {name}: ends at byte {end:,}, the file has {file_bytes:,}")
        found[name] = tensor
    # Some writers pad the last tensor too.
    if not end <= file_bytes <= _align(end, alignment):
        raise ValueError(f"its tensors end at byte {end:,}, the file has {file_bytes:,}")
    return found


def _with_q2_0_blocks(entries: Mapping[str, TensorEntry], alignment: int, data_bytes: int) -> dict[str, TensorEntry]:
    """Return entries whose Q2_0 tensors have the size of block that their bytes tell, the same in the whole file."""
    ends = [*(entry.offset for entry in entries.values()), data_bytes][1:]
    found = {
        name: (math.prod(entry.shape), end - entry.offset)
        for (name, entry), end in zip(entries.items(), ends, strict=True)
        if entry.type == Q2_0
    }

    def fits(kind: TensorType, size: int, room: int) -> bool:
        exact = kind.tensor_bytes(size)
        return size % kind.block == 0 and exact <= room <= _align(exact, alignment)

    for kind in Q2_0_TYPES:
        if all(fits(kind, size, room) for size, room in found.values()):
            return {name: entry._replace(type=kind) if name in found else entry for name, entry in entries.items()}
    # The tensor that fits the fewest sizes of block.
    name = min(found, key=lambda name: sum(fits(kind, *found[name]) for kind in Q2_0_TYPES))
    size, room = found[name]
    expected = " or ".join(f"{kind.tensor_bytes(size):,} (blocks of {kind.block})" for kind in Q2_0_TYPES)
    raise ValueError(
        f"tensor {name}: found {room:,} bytes for {size:,} numbers of Q2_0, expected {expected}, the same "
        "blocks in the whole file; download it again"
    )


def _entry_bytes(name: str, entry: TensorEntry) -> int:
    kind = entry.type
    if 0 in entry.shape or entry.shape[-1] % kind.block:
        raise ValueError(
            f"tensor {name}: found shape {list(entry.shape)}, expected rows of {kind.name} blocks of {kind.block}"
        )
    return kind.tensor_bytes(math.prod(entry.shape))


def _align(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment
