"""The health of ternary codes in the lines of metrics.jsonl: its names, and its shares by layer over a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

ZEROS, FLIPS = "ternary/zero_fraction", "ternary/flip_rate"
"""Share of codes that are zero after a step; share of codes that the step changed."""
_MOST_COLUMNS = 80


def by_layer(name: str) -> str:
    """Return the name of the list that holds a share of each block, from the first; null where no code is trained."""
    return f"{name}_by_layer"


def health_metrics(zeros: Any, flips: Any, sizes: np.ndarray) -> dict[str, Any]:
    """Return the metrics of a step from numbers of codes `[blocks + 1]`: of each block, and of all outside of blocks.

    `zeros` and `flips`, arrays of either framework, count the codes that are zero after the step and those that it
    changed; `sizes` counts all that are trained. Of a block without any the share is NaN.
    """
    found = {ZEROS: zeros.sum() / sizes.sum(), FLIPS: flips.sum() / sizes.sum()}
    if sizes[:-1].any():
        found |= {by_layer(ZEROS): zeros[:-1] / sizes[:-1], by_layer(FLIPS): flips[:-1] / sizes[:-1]}
    return found


@dataclass(frozen=True)
class LayerHealth:
    """Shares `[layer][column]` from 0 to 1, or None where there is none, and the place of every column."""

    places: list[float]
    shares: list[list[float | None]]


def layer_health(lines: Sequence[Mapping[str, Any]], name: str, place: str = "step") -> LayerHealth | None:
    """Return ZEROS or FLIPS by layer, over the numbers called `place`; None where a run has not written them."""
    key = by_layer(name)
    found = [line for line in lines if isinstance(line.get(key), list) and line[key] and _is_number(line.get(place))]
    if not found:
        return None
    found = found[:: -(-len(found) // _MOST_COLUMNS)]
    depth = min(len(line[key]) for line in found)
    shares = [[_number(line[key][layer]) for line in found] for layer in range(depth)]
    return LayerHealth([float(line[place]) for line in found], shares)


def _number(value: object) -> float | None:
    return float(value) if _is_number(value) and isinstance(value, int | float) else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e300
