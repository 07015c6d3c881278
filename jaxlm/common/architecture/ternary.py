"""The quantizers, written once for numpy, jax.numpy and mlx.core.

`xp` is the array namespace. Every framework runs these very lines, so training, export and inference
cannot disagree about a code or a scale.

Formulas: BitNet b1.58 (arXiv 2402.17764) and its training notes: absmean per tensor for weights, absmax per
token for activations.
"""

import functools
from typing import Any

import numpy as np

Array = Any  # numpy.ndarray, jax.Array or mlx.core.array

EPSILON = 1e-5
# The smallest scale that is a normal float16 number, so that every format holds the same scale.
SMALLEST_BFLOAT16_SCALE = 2.0**-14
ACTIVATION_LEVELS = 127
CODES_PER_BYTE = 4
CODES_PER_WORD = 16
AFFINE_GROUP_SIZES = (128, 64, 32)


def absmean(weight: Array, xp: Any) -> Array:
    """Mean of |W| over the last two axes, kept as size-1 axes, float32.

    The sum runs over integers (|W| in steps of 2^-14 of the largest magnitude's power of two), so it is the
    same number in any framework, on any number of devices and in any order of summation; a float mean is
    not, and a scale that lies on a rounding border would then differ between training and export. It is
    within 1e-6 of the true mean (1e-5 with a heavy tail), and its sums fit int32 up to 2^30 weights a matrix.
    """
    rows, columns = weight.shape[-2:]
    magnitude = xp.abs(weight.astype(xp.float32))
    largest = xp.maximum(xp.max(magnitude, axis=(-2, -1), keepdims=True), EPSILON)
    power = (largest.view(xp.int32) & 0x7F800000).view(xp.float32)  # 2^floor(log2(largest))
    step = power * 2.0**-14
    row_sums = xp.sum(xp.round(magnitude / step).astype(xp.int32), axis=-1, keepdims=True)
    high = xp.sum(row_sums >> 14, axis=-2, keepdims=True).astype(xp.float32)
    low = xp.sum(row_sums & 0x3FFF, axis=-2, keepdims=True).astype(xp.float32)
    # One rounding: a division would be compiled differently here and there; times a power of two is exact.
    return (high * 2.0**14 + low) * (1 / (rows * columns)) * step


def round_to_bfloat16(positive: Array, xp: Any) -> Array:
    """Round positive float32 numbers to the nearest bfloat16 (ties to even), kept as float32."""
    bits = positive.view(xp.int32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).view(xp.float32)


def quantize_weight(weight: Array, scale_dtype: str, xp: Any) -> tuple[Array, Array]:
    """Ternarise latent weights `[..., out, in]`: int8 codes in {-1, 0, 1} and one float32 scale a matrix `[...]`.

    Equal to `clip(round_half_even(W / scale), -1, 1)`: the code is 1 exactly where W > scale / 2. Comparing
    instead of dividing leaves nothing for an approximate division to get wrong. With `scale_dtype`
    "bfloat16" the scale is rounded first, so codes and scale belong together.
    """
    scale = absmean(weight, xp)
    if scale_dtype == "bfloat16":
        scale = xp.maximum(round_to_bfloat16(scale, xp), SMALLEST_BFLOAT16_SCALE)
    else:
        scale = xp.maximum(scale, EPSILON)
    return nearest_codes(weight.astype(xp.float32), scale, xp), scale[..., 0, 0]


def nearest_codes(weight: Array, scale: Array, xp: Any) -> Array:
    """Codes in {-1, 0, 1}, int8, whose products with the scale lie nearest to float32 weights; half-way is 0."""
    half = scale * 0.5
    return (weight > half).astype(xp.int8) - (weight < -half).astype(xp.int8)


def quantize_activation(x: Array, xp: Any) -> tuple[Array, Array]:
    """Quantize activations per token (last axis): integers in -127..127, kept as float32, and `127 / max|x|`.

    Dequantized: `q / scale`. The absmax scaling cannot reach -128, so nothing is clipped.
    """
    x = x.astype(xp.float32)
    largest = xp.max(xp.abs(x), axis=-1, keepdims=True)
    scale = ACTIVATION_LEVELS / xp.maximum(largest, EPSILON)
    return xp.round(x * scale), scale


def quantize_rows(weight: Array, xp: Any) -> tuple[Array, Array]:
    """Quantize a table `[rows, columns]` to 8 bits by row: int8 codes and float32 scales `[rows, 1]`.

    Dequantized: `codes * scale`.
    """
    weight = weight.astype(xp.float32)
    largest = xp.maximum(xp.max(xp.abs(weight), axis=-1, keepdims=True), EPSILON)
    scale = largest / ACTIVATION_LEVELS
    return xp.round(weight / scale).astype(xp.int8), scale


def packed_rows(out_features: int) -> int:
    """Rows of the packed form of a matrix with `out_features` rows."""
    return -(-out_features // CODES_PER_BYTE)


def pack(codes: np.ndarray) -> np.ndarray:
    """Pack codes `[out, in]` into uint8 `[ceil(out / 4), in]`, Hugging Face's four-plane layout.

    Byte row r holds matrix rows r, r + R, r + 2R, r + 3R (R packed rows) as `code + 1` in bits 2i..2i+1.
    Raises ValueError where a code is not in {-1, 0, 1}.
    """
    if codes.size and (codes.min() < -1 or codes.max() > 1):
        raise ValueError(f"ternary codes: found {codes.min()}..{codes.max()}, expected -1..1")
    rows = packed_rows(codes.shape[0])
    packed = np.zeros((rows, codes.shape[1]), np.uint8)
    for plane in range(CODES_PER_BYTE):
        part = codes[plane * rows : (plane + 1) * rows]
        packed[: len(part)] |= (part + 1).astype(np.uint8) << (2 * plane)
    return packed


def check_packed(packed: np.ndarray) -> None:
    """Raise ValueError on a code of value 3, which no packed weight holds."""
    if (packed & (packed >> 1) & 0x55).any():
        raise ValueError("packed ternary weights: found a code of value 3, expected 0, 1 or 2")


def unpack(packed: np.ndarray, out_features: int) -> np.ndarray:
    """Undo `pack`: int8 codes `[out_features, in]`. Raises ValueError on a code of value 3."""
    check_packed(packed)
    planes = [(packed >> (2 * plane)) & 3 for plane in range(CODES_PER_BYTE)]
    return np.concatenate(planes).astype(np.int8)[:out_features] - np.int8(1)


def affine_group_size(in_features: int) -> int:
    """The largest of MLX's groups of columns that divides a row, else the smallest one, up to which it is padded."""
    return next((size for size in AFFINE_GROUP_SIZES if in_features % size == 0), AFFINE_GROUP_SIZES[-1])


def affine_words(in_features: int) -> int:
    """Words of a row in MLX's 2-bit affine format, padded to whole groups."""
    size = affine_group_size(in_features)
    return -(-in_features // size) * size // CODES_PER_WORD


def pack_affine(codes: np.ndarray) -> np.ndarray:
    """Pack codes `[out, in]` into MLX's 2-bit affine format, uint32 `[out, affine_words(in)]`.

    A word holds `code + 1` of 16 columns in 2 bits each, the first in the lowest; columns past `in` hold code 0.
    """
    rows, columns = codes.shape
    padded = np.ones((rows, affine_words(columns) * CODES_PER_WORD), np.uint8)
    padded[:, :columns] = codes + 1
    quarters = (padded[:, place::CODES_PER_BYTE] << (2 * place) for place in range(CODES_PER_BYTE))
    return functools.reduce(np.bitwise_or, quarters).view("<u4")


def unpack_affine(words: np.ndarray, in_features: int) -> np.ndarray:
    """Undo `pack_affine`: int8 codes `[out, in_features]`. Raises ValueError on a code of value 3."""
    packed = np.ascontiguousarray(words, "<u4").view(np.uint8)
    check_packed(packed)
    codes = np.stack([(packed >> (2 * place)) & 3 for place in range(CODES_PER_BYTE)], axis=-1)
    return codes.reshape(len(words), -1)[:, :in_features].astype(np.int8) - np.int8(1)
