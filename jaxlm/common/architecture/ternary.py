"""The quantizers, written once for numpy, jax.numpy and mlx.core.

`xp` is the array namespace. Every framework runs these lines, so training, export and inference agree on every code
and scale.

Formulas: BitNet b1.58 (arXiv 2402.17764) and its training notes: absmean per matrix for weights, absmax per token for
activations.
"""

import functools
from typing import Any

import numpy as np

Array = Any  # numpy.ndarray, jax.Array or mlx.core.array

# The floor of what is divided by: the largest |W|, float32 weight scales, and the largest |x| of a token.
EPSILON = 1e-5
# The smallest normal float16 number, exact in bfloat16 too, so that every format holds the same scale.
SMALLEST_SCALE = 2.0**-14
# Sizes up to which the integer sums of `absmean` fit int32.
MOST_COLUMNS = 2**16 - 1
MOST_WEIGHTS = 2**30 - 1
ACTIVATION_LEVELS = 127
CODES_PER_BYTE = 4
CODES_PER_WORD = 16
AFFINE_GROUP_SIZES = (128, 64, 32)


def absmean(weight: Array, xp: Any) -> Array:
    """Return the mean of |W| of matrices `[..., out, in]` as float32 `[..., 1, 1]` (arXiv 2402.17764, equation 3).

    The sum runs over integers: |W| in steps of 2^-14 times the power of two below the largest magnitude. So the mean is
    the same number in any framework, on any number of devices and in any order of summation. A float mean is not, and
    a scale near a rounding boundary would differ between training and export. The result is within 1e-6 of the true
    mean (1e-5 with a heavy tail). Raises ValueError beyond 65,535 columns or 2^30 - 1 weights per matrix, where the
    sums would not fit int32.
    """
    rows, columns = weight.shape[-2:]
    if columns > MOST_COLUMNS or rows * columns > MOST_WEIGHTS:
        raise ValueError(
            f"ternary matrix: found {rows:,} x {columns:,} weights, expected at most {MOST_COLUMNS:,} columns and "
            f"{MOST_WEIGHTS:,} weights, whose scale can be summed exactly; make the matrix dense or split it"
        )
    magnitude = xp.abs(weight.astype(xp.float32))
    largest = xp.maximum(xp.max(magnitude, axis=(-2, -1), keepdims=True), EPSILON)
    power = (largest.view(xp.int32) & 0x7F800000).view(xp.float32)  # 2^floor(log2(largest))
    step = power * 2.0**-14
    row_sums = xp.sum(xp.round(magnitude / step).astype(xp.int32), axis=-1, keepdims=True)
    high = xp.sum(row_sums >> 14, axis=-2, keepdims=True).astype(xp.float32)
    low = xp.sum(row_sums & 0x3FFF, axis=-2, keepdims=True).astype(xp.float32)
    # mean = step * sum / (rows * columns). Multiplying by a power of two is exact; a division by a constant is not
    # compiled alike everywhere, so the reciprocal is multiplied.
    return (high * 2.0**14 + low) * (1 / (rows * columns)) * step


def round_to_bfloat16(positive: Array, xp: Any) -> Array:
    """Return positive float32 numbers rounded to the nearest bfloat16 (ties to even), as float32 of the same shape."""
    bits = positive.view(xp.int32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).view(xp.float32)


def quantize_weight(weight: Array, scale_dtype: str, xp: Any) -> tuple[Array, Array]:
    """Return the int8 codes `[..., out, in]` in {-1, 0, 1} of latent weights, and one float32 scale per matrix `[...]`.

    The scale is absmean and the codes are `clip(round_half_even(W / scale), -1, 1)` (arXiv 2402.17764, equations 1 to
    3). A comparison computes them, because a division may be approximate: the code is 1 exactly where W > scale / 2.
    With `scale_dtype` "bfloat16" the scale is rounded before the codes are computed. Dequantized: `codes * scale`.
    """
    scale = absmean(weight, xp)
    if scale_dtype == "bfloat16":
        scale = xp.maximum(round_to_bfloat16(scale, xp), SMALLEST_SCALE)
    else:
        scale = xp.maximum(scale, EPSILON)
    return nearest_codes(weight.astype(xp.float32), scale, xp), scale[..., 0, 0]


def nearest_codes(weight: Array, scale: Array, xp: Any) -> Array:
    """Return the int8 codes in {-1, 0, 1} whose products with the scale are nearest to float32 weights; ties are 0.

    The shape of `scale` broadcasts to that of `weight`.
    """
    half = scale * 0.5
    return (weight > half).astype(xp.int8) - (weight < -half).astype(xp.int8)


def quantize_activation(x: Array, xp: Any) -> tuple[Array, Array]:
    """Return activations `[..., features]` as integers in -127..127, and one scale `127 / max|x|` per token `[..., 1]`.

    Both are float32. Dequantized: `q / scale`. Absmax quantization (arXiv 2402.17764, section 2) with a symmetric
    range, so nothing is clipped.
    """
    x = x.astype(xp.float32)
    largest = xp.max(xp.abs(x), axis=-1, keepdims=True)
    scale = ACTIVATION_LEVELS / xp.maximum(largest, EPSILON)
    return xp.round(x * scale), scale


def quantize_rows(weight: Array, xp: Any) -> tuple[Array, Array]:
    """Return a table `[rows, columns]` as int8 codes and one float32 scale `max|row| / 127` per row `[rows, 1]`.

    Dequantized: `codes * scale`.
    """
    weight = weight.astype(xp.float32)
    largest = xp.maximum(xp.max(xp.abs(weight), axis=-1, keepdims=True), EPSILON)
    scale = largest / ACTIVATION_LEVELS
    return xp.round(weight / scale).astype(xp.int8), scale


def packed_rows(out_features: int) -> int:
    """Return the number of packed rows of a matrix with `out_features` rows."""
    return -(-out_features // CODES_PER_BYTE)


def pack(codes: np.ndarray) -> np.ndarray:
    """Return codes `[out, in]` packed as uint8 `[ceil(out / 4), in]`, in the layout of transformers' BitNet.

    With R packed rows, bits 2i and 2i + 1 of packed row r hold `code + 1` of matrix row r + i R. Raises ValueError on
    a code that is not in {-1, 0, 1}.
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
