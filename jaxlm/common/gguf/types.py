"""The types of tensors in GGUF files: those of the gguf library, and Q2_0, which it does not have."""

from typing import NamedTuple

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize

from jaxlm.common.gguf.q2_0 import block_bytes, dequantize_q2_0

Q2_0_NUMBER = 42
# Types of a fork of llama.cpp under numbers that llama.cpp no longer uses.
BITNET_CPP_TYPES = {36: "I2_S", 37: "I8_S", 38: "TL1"}
# Types that PrismML's fork of llama.cpp has of its own.
PRISM_TYPES = (142, 143)


class TensorType(NamedTuple):
    """The type of a tensor: how many of its numbers are stored together, and in how many bytes."""

    name: str
    number: int
    block: int
    block_bytes: int

    def tensor_bytes(self, size: int) -> int:
        """Return the bytes of so many numbers, which have to fill whole blocks."""
        return size // self.block * self.block_bytes


# The block of llama.cpp comes first: it is assumed where a tensor is too small to tell.
Q2_0_TYPES = tuple(TensorType("Q2_0", Q2_0_NUMBER, block, block_bytes(block)) for block in (64, 128))
Q2_0, Q2_0_OF_FORK = Q2_0_TYPES
_BY_NUMBER = {
    int(kind): TensorType(kind.name, int(kind), *GGML_QUANT_SIZES[kind])
    for kind in GGMLQuantizationType
    if int(kind) != Q2_0_NUMBER
} | {Q2_0_NUMBER: Q2_0}
TYPES = {kind.name: kind for kind in _BY_NUMBER.values()}
F32, F16, TQ1_0, TQ2_0 = (TYPES[name] for name in ("F32", "F16", "TQ1_0", "TQ2_0"))
TQ_TYPES = (TQ1_0, TQ2_0)
TERNARY_TYPES = (*TQ_TYPES, *Q2_0_TYPES)


def tensor_type(number: int) -> TensorType:
    """Return the type of a number in a file. Raises ValueError on an unknown one, with what to use instead."""
    if number in BITNET_CPP_TYPES:
        raise ValueError(
            f"found the type {BITNET_CPP_TYPES[number]}, which only bitnet.cpp reads; download the model's safetensors "
            "(for microsoft/bitnet-b1.58-2B-4T-gguf: hf download microsoft/bitnet-b1.58-2B-4T --local-dir DIR), or a "
            "GGUF of Q2_0, TQ1_0 or TQ2_0"
        )
    if number in PRISM_TYPES:
        raise ValueError(
            f"found type {number}, which only PrismML's fork of llama.cpp reads; download the model's MLX directory of "
            "2 bits or its unpacked floats"
        )
    if number not in _BY_NUMBER:
        raise ValueError(f"{number} is not a type of the gguf library; use the model's safetensors directory")
    return _BY_NUMBER[number]


def can_dequantize(kind: TensorType) -> bool:
    """Return True if tensors of this type can be read as floats."""
    try:
        dequantize_blocks(np.zeros((1, kind.block_bytes), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def dequantize_blocks(encoded: np.ndarray, kind: TensorType) -> np.ndarray:
    """Return the numbers float32 `[R, C]` of bytes `[R, bytes]`."""
    if kind.number == Q2_0_NUMBER:
        return dequantize_q2_0(encoded, kind.block)
    return dequantize(encoded, GGMLQuantizationType(kind.number))


def quantize_floats(array: np.ndarray, kind: TensorType) -> np.ndarray:
    """Return float32 numbers in a type of the gguf library, as bytes or, of F32 and F16, as floats."""
    return quantize(array, GGMLQuantizationType(kind.number))
