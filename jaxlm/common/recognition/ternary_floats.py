"""Is a float matrix ternary, and with which scales? Answered from a few of its rows at a time.

A matrix is ternary where its numbers are -g, 0 and g for each of its scales g.
"""

from collections.abc import Iterable

import numpy as np

from jaxlm.common.recognition.scales import (
    GROUP_SIZES,
    ROUNDING,
    SHORT_DTYPES,
    Recognition,
    ScaleDtype,
    deviation_of,
    is_exact_in,
    magnitude_range,
)

# With fewer weights that are not zero to a scale, any sparse matrix would be ternary.
FEWEST_NONZEROS = 4
# Different numbers up to which a group of 32 columns counts as quantized to a few levels.
MOST_LEVELS = 16


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
    holds: dict[ScaleDtype, bool] = {dtype: True for dtype in SHORT_DTYPES}
    for block in blocks:
        if not np.isfinite(block).all():
            return Recognition(shape, "not finite")
        cells = np.abs(block).reshape(len(block), -1, cell)
        top, low = magnitude_range(cells)
        if deviation_of(top, low) > ROUNDING:
            return Recognition(shape, _other_form(block, cell), zeros=float(np.mean(block == 0)))
        zeros += int(np.count_nonzero(block == 0))
        seen += block.size
        holds = {dtype: held and is_exact_in(top, dtype) for dtype, held in holds.items()}
        for size in groups:
            span = size // cell
            group_top = top.reshape(len(block), -1, span).max(-1)
            group_low = low.reshape(len(block), -1, span).min(-1)
            deviations[size] = max(deviations[size], deviation_of(group_top, group_low))
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
        top[part], low[part] = magnitude_range(np.abs(block).reshape(len(block), groups, -1))
    top = top.reshape(blocks, rows // blocks, groups).max(1)
    low = low.reshape(blocks, rows // blocks, groups).min(1)
    if not (deviation := deviation_of(top, low)) <= ROUNDING:
        raise ValueError(
            f"found magnitudes that differ by {deviation:.1%} where one scale was expected: the matrix is not ternary "
            f"with {blocks:,} x {groups:,} scales"
        )
    return codes, _middle(top, low)


def _middle(top: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Return the scale of magnitudes: the number itself where all are equal, and 0 where there are none."""
    return np.where(top == low, top, np.where(top > 0, top / 2 + low / 2, 0)).astype(np.float32)


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
        is_ternary = deviation_of(top, low) <= 2.0**-4
        if is_ternary and np.count_nonzero(cells) >= FEWEST_NONZEROS * np.count_nonzero(top):
            return True
        transformed = transformed.reshape(rows.shape)
    return False
