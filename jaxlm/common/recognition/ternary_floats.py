"""Is a float matrix ternary, and with which scales? Answered from a few of its rows at a time.

A matrix is ternary where its numbers are -g, 0 and g for each of its scales g. Scales may belong to the matrix, to
blocks of rows, to rows, or to groups of a row's columns (`ModelConfig.scale_per`).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jaxlm.common.architecture.ternary import SMALLEST_SCALE

GROUP_SIZES = (32, 64, 128)
# More blocks of rows than any released model has; a matrix with more of them has scales per row.
MOST_ROW_BLOCKS = 64
# Magnitudes of one scale that have been rounded to bfloat16 twice differ by at most so much.
ROUNDING = 2.0**-7
# With fewer weights that are not zero to a scale, any sparse matrix would be ternary.
FEWEST_NONZEROS = 4
# Different numbers up to which a group of 32 columns counts as quantized to a few levels.
MOST_LEVELS = 16

ScaleDtype = Literal["bfloat16", "float16", "float32"]
_SHORT: tuple[ScaleDtype, ...] = ("bfloat16", "float16")


@dataclass(frozen=True)
class Recognition:
    """What a matrix is found to be."""

    shape: tuple[int, int]
    reason: str
    """Empty for a ternary matrix, otherwise what is found instead, such as "dense" or "binary"."""
    zeros: float = 0.0
    """Share of weights that are 0."""
    deviation: float = 0.0
    """Largest difference of two magnitudes of one scale, relative to the smaller one; 0 where they are equal."""
    exact_in: tuple[ScaleDtype, ...] = ()
    """Precisions of 16 bits that hold every scale exactly."""
    fitting_groups: tuple[int, ...] = ()
    """Group sizes, each of which gives every group one scale."""
    row_scales: np.ndarray | None = None
    """Float32 `[rows]`: the scale of each row, 0 for a row of zeros; None where a row has several scales."""

    @property
    def is_ternary(self) -> bool:
        return not self.reason

    @property
    def is_exact(self) -> bool:
        """True if all magnitudes of a scale are equal to the bit."""
        return self.is_ternary and self.deviation == 0

    @property
    def scale_per(self) -> str:
        """The fewest scales that the matrix is ternary with, in the words of ModelConfig; empty for another matrix."""
        if not self.is_ternary:
            return ""
        if self.row_scales is not None:
            blocks = next((n for n in range(1, MOST_ROW_BLOCKS + 1) if self._fits_blocks(n)), None)
            return "tensor" if blocks == 1 else f"row_blocks:{blocks}" if blocks else "row"
        return f"group:{max(self.fitting_groups)}"

    def fits(self, scale_per: str) -> bool:
        """Return True if the matrix is ternary with these scales."""
        if not self.is_ternary:
            return False
        kind, _, number = scale_per.partition(":")
        if kind == "group":
            return int(number) in self.fitting_groups
        if self.row_scales is None:
            return False
        return kind == "row" or self._fits_blocks(int(number) if number else 1)

    def _fits_blocks(self, blocks: int) -> bool:
        scales = self.row_scales
        if scales is None or len(scales) % blocks or len(scales) == blocks > 1:
            return False
        top, low = _range(scales.reshape(blocks, -1))
        return _deviation(top, low) <= (0 if self.deviation == 0 else ROUNDING)


def recognize(blocks: Iterable[np.ndarray], shape: tuple[int, int]) -> Recognition:
    """Return what a float32 matrix `shape` is, given as consecutive blocks of rows. A dense one is read in part.

    A group of zeros fits any scale. With `deviation` above 0 the numbers of a scale were rounded after it was
    multiplied. Not ternary are matrices without a zero (binary), with more levels, or with a number that is not finite.
    """
    rows, columns = shape
    cell = next((size for size in GROUP_SIZES if columns % size == 0), columns)
    groups = [size for size in (*GROUP_SIZES, columns) if columns % size == 0]
    deviations = dict.fromkeys(groups, 0.0)
    scales_found = dict.fromkeys(groups, 0)
    row_tops, row_lows = [], []
    zeros = seen = 0
    holds: dict[ScaleDtype, bool] = {dtype: True for dtype in _SHORT}
    for block in blocks:
        if not np.isfinite(block).all():
            return Recognition(shape, "not finite")
        cells = np.abs(block).reshape(len(block), -1, cell)
        top, low = _range(cells)
        if _deviation(top, low) > ROUNDING:
            return Recognition(shape, _other_form(block, cell), zeros=float(np.mean(block == 0)))
        zeros += int(np.count_nonzero(block == 0))
        seen += block.size
        holds = {dtype: held and _is_exact(top, dtype) for dtype, held in holds.items()}
        for size in groups:
            span = size // cell
            group_top = top.reshape(len(block), -1, span).max(-1)
            group_low = low.reshape(len(block), -1, span).min(-1)
            deviations[size] = max(deviations[size], _deviation(group_top, group_low))
            scales_found[size] += int(np.count_nonzero(group_top))
        row_tops.append(top.max(-1))
        row_lows.append(low.min(-1))
    if seen != rows * columns:
        raise ValueError(f"found {seen:,} numbers, expected {rows:,} x {columns:,}")
    exact = deviations[cell] == 0
    fitting = [size for size in groups if deviations[size] <= (0 if exact else ROUNDING)]
    per_row = columns in fitting
    coarsest = max(fitting)
    if (nonzeros := seen - zeros) and nonzeros < FEWEST_NONZEROS * scales_found[coarsest]:
        return Recognition(shape, "dense", zeros=zeros / seen)
    if not zeros:
        return Recognition(shape, "binary")
    tops, lows = np.concatenate(row_tops), np.concatenate(row_lows)
    return Recognition(
        shape,
        "",
        zeros=zeros / seen,
        deviation=deviations[coarsest],
        exact_in=tuple(dtype for dtype, held in holds.items() if held and exact),
        fitting_groups=tuple(size for size in GROUP_SIZES if size in fitting),
        row_scales=_middle(tops, lows) if per_row else None,
    )


def recognize_scales(scales: np.ndarray, shape: tuple[int, int]) -> Recognition:
    """Return what a ternary matrix `shape` is by its scales `[R, k]`, one for each C / k columns; 0 is of zeros."""
    rows, columns = shape
    cell = columns // scales.shape[1]
    fitting = []
    for size in (*GROUP_SIZES, columns):
        if columns % size or (size % cell and cell % size):
            continue
        top, low = _range(scales.reshape(rows, -1, max(size // cell, 1)))
        if _deviation(top, low) == 0:
            fitting.append(size)
    groups = tuple(size for size in GROUP_SIZES if size in fitting)
    row_scales = scales.max(-1) if columns in fitting else None
    exact_in: tuple[ScaleDtype, ...] = tuple(dtype for dtype in _SHORT if _is_exact(scales, dtype))
    return Recognition(shape, "", exact_in=exact_in, fitting_groups=groups, row_scales=row_scales)


def common_scale_per(matrices: Iterable[Recognition]) -> str | None:
    """Return the fewest scales that all matrices of a model are ternary with; None where there are none."""
    matrices = list(matrices)
    blocks = {each.scale_per for each in matrices if each.scale_per.startswith("row_blocks")}
    order = ["tensor", *sorted(blocks, key=lambda name: int(name.partition(":")[2])), "row"]
    order += [f"group:{size}" for size in reversed(GROUP_SIZES)]
    return next((name for name in order if all(each.fits(name) for each in matrices)), None)


def common_scale_dtype(matrices: Iterable[Recognition], scale_per: str) -> ScaleDtype:
    """Return the shortest precision that holds all scales of a model exactly; bfloat16 before float16.

    One scale a matrix costs nothing, and is float32 instead of float16, as in all directories of BitNet.
    """
    candidates: tuple[ScaleDtype, ...] = _SHORT[:1] if scale_per == "tensor" else _SHORT
    matrices = list(matrices)
    for dtype in candidates:
        if all(dtype in each.exact_in for each in matrices):
            return dtype
    return "float32"


def ternary_form(
    row_blocks: Iterable[np.ndarray], shape: tuple[int, int], grid: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the int8 codes `shape` and the float32 scales `grid` of a matrix that is ternary with such scales.

    The matrix is given as consecutive blocks of rows. Exact numbers keep their scale to the bit; of rounded ones it is
    the middle of their magnitudes. The scale of a tile of zeros is 0. Raises ValueError where a tile is not ternary.
    """
    rows, (blocks, groups) = shape[0], grid
    codes = np.empty(shape, np.int8)
    top, low = np.empty((rows, groups), np.float32), np.empty((rows, groups), np.float32)
    start = 0
    for block in row_blocks:
        part = slice(start, start := start + len(block))
        codes[part] = np.sign(block)
        top[part], low[part] = _range(np.abs(block).reshape(len(block), groups, -1))
    top = top.reshape(blocks, rows // blocks, groups).max(1)
    low = low.reshape(blocks, rows // blocks, groups).min(1)
    if not (deviation := _deviation(top, low)) <= ROUNDING:
        raise ValueError(
            f"found magnitudes that differ by {deviation:.1%} where one scale was expected: the matrix is not ternary "
            f"with {blocks:,} x {groups:,} scales"
        )
    return codes, _middle(top, low)


def scales_of_grid(scales: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Return the scales `grid` of a matrix from those of its parts `[R, k]`, in which 0 is of zeros.

    Where all parts of a tile are 0 any scale is right, and it is the smallest one.
    """
    (blocks, groups), (rows, parts) = grid, scales.shape
    cells = scales.repeat(max(1, groups // parts), axis=1)
    largest = cells.reshape(blocks, rows // blocks, groups, -1).max((1, 3))
    return np.where(largest > 0, largest, np.float32(SMALLEST_SCALE))


def _range(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest and the smallest magnitude but 0 along the last axis; 0 and infinity where all are 0."""
    return cells.max(-1), np.where(cells > 0, cells, np.float32(np.inf)).min(-1)


def _deviation(top: np.ndarray, low: np.ndarray) -> float:
    with np.errstate(over="ignore"):  # a subnormal number
        return float(np.max(top / low - 1, initial=0.0, where=top > 0))


def _middle(top: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Return the scale of magnitudes: the number itself where all are equal, and 0 where there are none."""
    return np.where(top == low, top, np.where(top > 0, top / 2 + low / 2, 0)).astype(np.float32)


def _is_exact(scales: np.ndarray, dtype: ScaleDtype) -> bool:
    return bool(np.array_equal(_rounded(scales, dtype), scales))


def _rounded(scales: np.ndarray, dtype: ScaleDtype) -> np.ndarray:
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return scales.astype(np.float16).astype(np.float32)
    return np.where(scales.view(np.uint32) & 0xFFFF == 0, scales, np.float32(np.nan))


def _other_form(block: np.ndarray, cell: int) -> str:
    """Return the name of what a matrix with magnitudes of several sizes is, by its first rows."""
    some = block[:32]
    if _is_rotated(some):
        return "Hadamard variant"
    cells = np.sort(some.reshape(-1, cell), axis=-1)
    levels = 1 + np.count_nonzero(np.diff(cells, axis=-1), axis=-1)
    is_full = np.count_nonzero(some) >= some.size / 2  # a sparse one has few numbers as well
    if is_full and cell >= 2 * MOST_LEVELS and levels.max() <= MOST_LEVELS:
        return f"quantized to {levels.max()} levels"
    return "dense"


def _is_rotated(rows: np.ndarray) -> bool:
    """Return True if rows `[R, C]` are ternary after a Walsh-Hadamard transform of blocks of their columns."""
    transformed, size = rows.astype(np.float64), 1
    while rows.shape[1] % (2 * size) == 0:
        pairs = transformed.reshape(len(rows), -1, 2, size)
        transformed = np.concatenate((pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]), axis=-1)
        size *= 2
        if size < GROUP_SIZES[0]:
            transformed = transformed.reshape(rows.shape)
            continue
        cells = np.abs(transformed.reshape(-1, GROUP_SIZES[0]))
        largest = cells.max(-1, keepdims=True)
        # Rounding leaves a little where a zero was.
        cells[cells < largest * 2.0**-5] = 0
        top, low = cells.max(-1), np.where(cells > 0, cells, np.inf).min(-1)
        is_ternary = _deviation(top, low) <= 2.0**-4
        if is_ternary and np.count_nonzero(cells) >= FEWEST_NONZEROS * np.count_nonzero(top):
            return True
        transformed = transformed.reshape(rows.shape)
    return False
