"""The scales of a ternary matrix: how many of them it needs, and in which precision they are exact.

Scales may belong to the matrix, to blocks of rows, to rows, or to groups of a row's columns (`ModelConfig.scale_per`).
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

ScaleDtype = Literal["bfloat16", "float16", "float32"]
SHORT_DTYPES: tuple[ScaleDtype, ...] = ("bfloat16", "float16")


@dataclass(frozen=True)
class Recognition:
    """The finding about a matrix."""

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
        top, low = magnitude_range(scales.reshape(blocks, -1))
        return deviation_of(top, low) <= (0 if self.deviation == 0 else ROUNDING)


def recognize_scales(scales: np.ndarray, shape: tuple[int, int]) -> Recognition:
    """Return what a ternary matrix `shape` is by its scales `[R, k]`, one for each C / k columns; 0 is of zeros."""
    rows, columns = shape
    cell = columns // scales.shape[1]
    fitting = []
    for size in (*GROUP_SIZES, columns):
        if columns % size or (size % cell and cell % size):
            continue
        top, low = magnitude_range(scales.reshape(rows, -1, max(size // cell, 1)))
        if deviation_of(top, low) == 0:
            fitting.append(size)
    groups = tuple(size for size in GROUP_SIZES if size in fitting)
    row_scales = scales.max(-1) if columns in fitting else None
    exact_in: tuple[ScaleDtype, ...] = tuple(dtype for dtype in SHORT_DTYPES if is_exact_in(scales, dtype))
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
    candidates: tuple[ScaleDtype, ...] = SHORT_DTYPES[:1] if scale_per == "tensor" else SHORT_DTYPES
    matrices = list(matrices)
    for dtype in candidates:
        if all(dtype in each.exact_in for each in matrices):
            return dtype
    return "float32"


def scales_of_grid(scales: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Return the scales `grid` of a matrix from those of its parts `[R, k]`, in which 0 is of zeros.

    Where all parts of a tile are 0 any scale is right, and it is the smallest one.
    """
    (blocks, groups), (rows, parts) = grid, scales.shape
    cells = scales.repeat(max(1, groups // parts), axis=1)
    largest = cells.reshape(blocks, rows // blocks, groups, -1).max((1, 3))
    return np.where(largest > 0, largest, np.float32(SMALLEST_SCALE))


def magnitude_range(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest and the smallest magnitude but 0 along the last axis; 0 and infinity where all are 0."""
    return cells.max(-1), np.where(cells > 0, cells, np.float32(np.inf)).min(-1)


def deviation_of(top: np.ndarray, low: np.ndarray) -> float:
    """Return how much two magnitudes of one scale differ at most, by the largest and the smallest one of each scale."""
    with np.errstate(over="ignore"):  # a subnormal number
        return float(np.max(top / low - 1, initial=0.0, where=top > 0))


def is_exact_in(scales: np.ndarray, dtype: ScaleDtype) -> bool:
    """Return True if a precision of 16 bits holds float32 scales exactly."""
    return bool(np.array_equal(_rounded(scales, dtype), scales))


def _rounded(scales: np.ndarray, dtype: ScaleDtype) -> np.ndarray:
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return scales.astype(np.float16).astype(np.float32)
    return np.where(scales.view(np.uint32) & 0xFFFF == 0, scales, np.float32(np.nan))
