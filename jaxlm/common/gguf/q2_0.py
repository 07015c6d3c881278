"""The blocks of Q2_0, type 42 of llama.cpp, which the gguf library does not have: a float16 scale, then 2-bit codes.

Weight j of a block is in byte j / 4 behind the scale, in bits 2 (j % 4), the first weight lowest. The value of a code q
is (q - 1) times the scale, so 0, 1 and 2 are ternary, and 3 is a fourth level. llama.cpp has blocks of 64 weights;
files of PrismML's fork have blocks of 128 under the same number.
"""

import functools

import numpy as np

from jaxlm.common.architecture.packing import CODES_PER_BYTE

SCALE_BYTES = 2


def block_bytes(block: int) -> int:
    """Return the bytes of a block of so many weights."""
    return SCALE_BYTES + block // CODES_PER_BYTE


def pack_q2_0(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Return int8 codes `[R, C]` in {-1, 0, 1} and float16 scales `[R, C / block]` as bytes: uint8 `[R, bytes]`."""
    rows, columns = codes.shape
    size = columns // scales.shape[1]
    blocks = np.empty((rows, scales.shape[1], block_bytes(size)), np.uint8)
    blocks[..., :SCALE_BYTES] = np.ascontiguousarray(scales, "<f2")[..., None].view(np.uint8)
    levels = (codes + 1).astype(np.uint8).reshape(rows, -1, size // CODES_PER_BYTE, CODES_PER_BYTE)
    blocks[..., SCALE_BYTES:] = functools.reduce(
        np.bitwise_or, (levels[..., index] << (2 * index) for index in range(CODES_PER_BYTE))
    )
    return blocks.reshape(rows, -1)


def unpack_q2_0(encoded: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the int8 codes `[R, C]` in -1..2 and the float32 scales `[R, C / block]` of bytes `[R, bytes]`."""
    rows = len(encoded)
    blocks = np.ascontiguousarray(encoded).reshape(rows, -1, block_bytes(block))
    scales = blocks[..., :SCALE_BYTES].copy().view("<f2")[..., 0].astype(np.float32)
    packed = blocks[..., SCALE_BYTES:]
    levels = np.stack([(packed >> (2 * index)) & 3 for index in range(CODES_PER_BYTE)], axis=-1)
    return levels.reshape(rows, -1).astype(np.int8) - np.int8(1), scales


def dequantize_q2_0(encoded: np.ndarray, block: int) -> np.ndarray:
    """Return the float32 weights `[R, C]` of bytes `[R, bytes]`, of all four levels."""
    codes, scales = unpack_q2_0(encoded, block)
    return (codes.reshape(*scales.shape, block) * scales[..., None]).reshape(codes.shape)
