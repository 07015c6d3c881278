"""Ternary codes packed into bytes and words: Hugging Face's layout of BitNet, and MLX's 2-bit affine format."""

import functools
from collections.abc import Iterable

import numpy as np

CODES_PER_BYTE = 4
CODES_PER_WORD = 16
AFFINE_GROUP_SIZES = (128, 64, 32)


def packed_rows(out_features: int) -> int:
    """Return the number of packed rows of a matrix with `out_features` rows."""
    return -(-out_features // CODES_PER_BYTE)


def pack(codes: np.ndarray) -> np.ndarray:
    """Return codes `[out, in]` packed as uint8 `[ceil(out / 4), in]`, in the layout of transformers' BitNet.

    With R packed rows, bits 2i and 2i + 1 of packed row r hold `code + 1` of matrix row r + i R. Raises ValueError on
    a code that is not in {-1, 0, 1}.
    """
    return pack_blocks([codes], codes.shape)


def pack_blocks(blocks: Iterable[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Return what `pack` returns for a matrix `shape` that is given as consecutive blocks of its rows."""
    rows = packed_rows(shape[0])
    packed = np.zeros((rows, shape[1]), np.uint8)
    start = 0
    for codes in blocks:
        if codes.size and (codes.min() < -1 or codes.max() > 1):
            raise ValueError(f"ternary codes: found {codes.min()}..{codes.max()}, expected -1..1")
        while len(codes):
            plane, row = divmod(start, rows)
            part, codes = codes[: rows - row], codes[rows - row :]
            packed[row : row + len(part)] |= (part + 1).astype(np.uint8) << (2 * plane)
            start += len(part)
    return packed


def check_packed(packed: np.ndarray) -> None:
    """Raise ValueError if packed bytes hold a code of value 3, which stands for no weight."""
    if (packed & (packed >> 1) & 0x55).any():
        raise ValueError("packed ternary weights: found a code of value 3, expected 0, 1 or 2")


def unpack(packed: np.ndarray, out_features: int) -> np.ndarray:
    """Return the int8 codes `[out_features, in]` that `pack` packed. Raises ValueError on a code of value 3."""
    check_packed(packed)
    planes = [(packed >> (2 * plane)) & 3 for plane in range(CODES_PER_BYTE)]
    return np.concatenate(planes).astype(np.int8)[:out_features] - np.int8(1)


def affine_group_size(in_features: int) -> int:
    """Return the largest group size of MLX that divides a row, or the smallest where none does and rows are padded."""
    return next((size for size in AFFINE_GROUP_SIZES if in_features % size == 0), AFFINE_GROUP_SIZES[-1])


def affine_words(in_features: int) -> int:
    """Return the number of uint32 words per row in MLX's 2-bit affine format, padded to full groups."""
    size = affine_group_size(in_features)
    return -(-in_features // size) * size // CODES_PER_WORD


def pack_affine(codes: np.ndarray) -> np.ndarray:
    """Return codes `[out, in]` in MLX's 2-bit affine format (`mlx.core.quantize`): uint32 `[out, affine_words(in)]`.

    A word holds `code + 1` of 16 columns in 2 bits each, the first column in the lowest bits. Columns of the padding
    hold code 0.
    """
    rows, columns = codes.shape
    padded = np.ones((rows, affine_words(columns) * CODES_PER_WORD), np.uint8)
    padded[:, :columns] = codes + 1
    quarters = (padded[:, index::CODES_PER_BYTE] << (2 * index) for index in range(CODES_PER_BYTE))
    return functools.reduce(np.bitwise_or, quarters).view("<u4")


def unpack_affine(words: np.ndarray, in_features: int) -> np.ndarray:
    """Return the int8 codes `[out, in_features]` that `pack_affine` packed. Raises ValueError on a code of value 3."""
    packed = np.ascontiguousarray(words, "<u4").view(np.uint8)
    check_packed(packed)
    codes = np.stack([(packed >> (2 * index)) & 3 for index in range(CODES_PER_BYTE)], axis=-1)
    return codes.reshape(len(words), -1)[:, :in_features].astype(np.int8) - np.int8(1)
