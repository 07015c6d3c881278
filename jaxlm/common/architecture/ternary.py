"""The quantizers, written once for numpy, jax.numpy and mlx.core.

`xp` is the array namespace. Every framework runs these lines, so training, export and inference agree on every code
and scale.

Formulas: BitNet b1.58 (arXiv 2402.17764) and its training notes: absmean for weights, absmax per token for activations.
A matrix `[R, C]` has scales `[blocks, groups]`: one for each block of R / blocks rows and group of C / groups columns.
"""

import re
from dataclasses import dataclass
from typing import Any

from jaxlm.common.architecture.packing import AFFINE_GROUP_SIZES

Array = Any  # numpy.ndarray, jax.Array or mlx.core.array

# The floor of what is divided by: the largest |W|, float32 weight scales, and the largest |x| of a token.
EPSILON = 1e-5
# The smallest normal float16 number, exact in bfloat16 too, so that every format holds the same scale.
SMALLEST_SCALE = 2.0**-14
# Bits of a float32 that a scale of another precision has not.
_ROUNDED_BITS = {"bfloat16": 16, "float16": 13}
# Sizes up to which the integer sums of `absmean` fit int32.
MOST_COLUMNS = 2**16 - 1
MOST_WEIGHTS = 2**30 - 1
ACTIVATION_LEVELS = 127


@dataclass(frozen=True)
class TernaryForm:
    """The numbers of a ternary layer, in the terms of ModelConfig. The default is BitNet b1.58 with rounded scales.

    Raises ValueError on an unknown `scale_per`.
    """

    scale_per: str = "tensor"
    scale_dtype: str = "bfloat16"
    activation_bits: int | None = 8

    def __post_init__(self) -> None:
        match = re.fullmatch(r"tensor|row|row_blocks:([1-9]\d*)|group:(\d+)", str(self.scale_per))
        if not match or (match[2] and int(match[2]) not in AFFINE_GROUP_SIZES):
            raise ValueError(
                f"scale_per: found {self.scale_per!r}, expected tensor, row, row_blocks:N (blocks of rows), or "
                "group:32, group:64 or group:128 (columns of a row)"
            )

    def grid(self, rows: int, columns: int) -> tuple[int, int]:
        """Return the shape [blocks, groups] of the scales of a matrix.

        Raises ValueError where its rows or columns do not divide into blocks or groups of equal size.
        """
        kind, _, number = self.scale_per.partition(":")
        if kind == "group":
            if columns % int(number):
                raise ValueError(
                    f"scale_per: found {self.scale_per} for a matrix of {rows:,} x {columns:,}, expected a group size "
                    "that divides its columns; choose a smaller one, or row"
                )
            return rows, columns // int(number)
        blocks = {"tensor": 1, "row": rows}.get(kind) or int(number)
        if rows % blocks:
            raise ValueError(
                f"scale_per: found {self.scale_per} for a matrix of {rows:,} x {columns:,}, expected a number of "
                "blocks that divides its rows"
            )
        return blocks, 1

    @property
    def is_by_group(self) -> bool:
        """True if the inputs of an output have several scales."""
        return self.scale_per.startswith("group:")

    def stored_shape(self, rows: int, columns: int) -> tuple[int, ...]:
        """Return the shape of the scales of a matrix in files: [blocks, groups], or [1] for a single one."""
        return (1,) if self.scale_per == "tensor" else self.grid(rows, columns)


def absmean(weight: Array, xp: Any, grid: tuple[int, int] = (1, 1)) -> Array:
    """Return the mean of |W| (arXiv 2402.17764, equation 3) of each tile of matrices `[..., R, C]`.

    It is float32 `[..., blocks, groups]` for a grid of (blocks, groups). The sum runs over integers: |W| in steps of
    2^-14 times the power of two below the tile's largest magnitude. So the mean is the same number in any framework, on
    any number of devices and in any order of summation. A float mean is not, and a scale near a rounding boundary would
    differ between training and export. The result is within 1e-6 of the true mean (1e-5 with a heavy tail). Raises
    ValueError beyond 65,535 columns or 2^30 - 1 weights per tile, where the sums would not fit int32.
    """
    tiles = _tiles(weight, grid)
    rows, columns = tiles.shape[-3], tiles.shape[-1]
    if columns > MOST_COLUMNS or rows * columns > MOST_WEIGHTS:
        raise ValueError(
            f"ternary matrix: found {rows:,} x {columns:,} weights, expected at most {MOST_COLUMNS:,} columns and "
            f"{MOST_WEIGHTS:,} weights, whose scale can be summed exactly; make the matrix dense or split it"
        )
    magnitude = xp.abs(tiles.astype(xp.float32))
    largest = xp.maximum(xp.max(magnitude, axis=(-3, -1), keepdims=True), EPSILON)
    power = (largest.view(xp.int32) & 0x7F800000).view(xp.float32)  # 2^floor(log2(largest))
    step = power * 2.0**-14
    row_sums = xp.sum(xp.round(magnitude / step).astype(xp.int32), axis=-1, keepdims=True)
    high = xp.sum(row_sums >> 14, axis=-3, keepdims=True).astype(xp.float32)
    low = xp.sum(row_sums & 0x3FFF, axis=-3, keepdims=True).astype(xp.float32)
    # mean = step * sum / (rows * columns). Multiplying by a power of two is exact; a division by a constant is not
    # compiled alike everywhere, so the reciprocal is multiplied.
    return ((high * 2.0**14 + low) * (1 / (rows * columns)) * step)[..., 0, :, 0]


def _tiles(weight: Array, grid: tuple[int, int]) -> Array:
    """Return matrices `[..., R, C]` as `[..., blocks, R / blocks, groups, C / groups]`."""
    *stack, rows, columns = weight.shape
    blocks, groups = grid
    return weight.reshape(*stack, blocks, rows // blocks, groups, columns // groups)


def largest_of_tiles(weight: Array, grid: tuple[int, int], xp: Any) -> Array:
    """Return the largest |W| `[..., blocks, groups]` of each tile of matrices `[..., R, C]`."""
    return xp.max(xp.abs(_tiles(weight, grid)), axis=(-3, -1))


def spread(scale: Array, shape: tuple[int, ...], xp: Any) -> Array:
    """Return scales `[..., blocks, groups]` in a shape that broadcasts to that of their weights `[..., R, C]`."""
    (blocks, groups), (rows, columns) = scale.shape[-2:], shape[-2:]
    if blocks not in (1, rows):
        scale = xp.repeat(scale, rows // blocks, axis=-2)
    return scale if groups == 1 else xp.repeat(scale, columns // groups, axis=-1)


def dequantize(codes: Array, scale: Array, xp: Any) -> Array:
    """Return codes * scales, float32 `[..., R, C]`, of int8 codes `[..., R, C]` and scales `[..., blocks, groups]`."""
    return (_tiles(codes, scale.shape[-2:]) * scale[..., :, None, :, None]).reshape(codes.shape)


def round_to(dtype: str, positive: Array, xp: Any) -> Array:
    """Return positive float32 numbers rounded to the nearest bfloat16 or normal float16 (ties to even), as float32."""
    dropped = _ROUNDED_BITS[dtype]
    bits = positive.view(xp.int32)
    half = (1 << (dropped - 1)) - 1
    return ((bits + half + ((bits >> dropped) & 1)) >> dropped << dropped).view(xp.float32)


def round_scale(dtype: str, positive: Array, xp: Any) -> Array:
    """Return positive float32 scales in the precision of a TernaryForm, as float32.

    In bfloat16 and float16 they are at least 2^-14, the smallest normal float16 number, in float32 at least 1e-5.
    """
    if dtype == "float32":
        return xp.maximum(positive, EPSILON)
    return xp.maximum(round_to(dtype, positive, xp), SMALLEST_SCALE)


def quantize_weight(weight: Array, form: TernaryForm, xp: Any) -> tuple[Array, Array]:
    """Return the int8 codes `[..., R, C]` in {-1, 0, 1} of latent weights, and their float32 scales.

    The scales are `[..., blocks, groups]`, by the form's grid: absmean, rounded before the codes are computed. The
    codes are `clip(round_half_even(W / scale), -1, 1)` (arXiv 2402.17764, equations 1 to 3). A comparison computes
    them, because a division may be approximate: the code is 1 exactly where W > scale / 2.
    """
    grid = form.grid(*weight.shape[-2:])
    scale = round_scale(form.scale_dtype, absmean(weight, xp, grid), xp)
    return nearest_codes(weight.astype(xp.float32), scale, xp), scale


def latent_weight(codes: Array, scale: Array, xp: Any) -> Array:
    """Return float32 weights `[..., R, C]` that `quantize_weight` turns into these codes and scales again.

    They are codes * scales divided by the share of codes that are not 0, so that the mean of |W| of a tile is its
    scale. Scales rounded to bfloat16 or float16 come back exactly, float32 ones within 3e-5. A tile of zeros loses its
    scale, which multiplies nothing.
    """
    grid = scale.shape[-2:]
    used = xp.mean(xp.abs(_tiles(codes, grid)).astype(xp.float32), axis=(-3, -1))
    return dequantize(codes, xp.where(used > 0, scale / xp.maximum(used, EPSILON), 0.0), xp)


def nearest_codes(weight: Array, scale: Array, xp: Any) -> Array:
    """Return the int8 codes in {-1, 0, 1} whose products with their scales are nearest to the weights; ties are 0.

    Weights are float32 `[..., R, C]`, scales `[..., blocks, groups]`.
    """
    blocks, groups = scale.shape[-2:]
    tiles, half = _tiles(weight, (blocks, groups)), scale[..., :, None, :, None] * 0.5
    return ((tiles > half).astype(xp.int8) - (tiles < -half).astype(xp.int8)).reshape(weight.shape)


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
