"""The health of every layer's ternary weights over the steps, from the lines of metrics.jsonl."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_MOST_COLUMNS = 80


@dataclass(frozen=True)
class LayerHealth:
    """Shares `[layer][step]` from 0 to 1, with the names of layers and steps."""

    layers: list[str]
    steps: list[str]
    shares: list[list[float]]


def layer_health(lines: Sequence[dict[str, Any]], name: str) -> LayerHealth | None:
    """Return the shares of a name, `zero_fraction` or `flip_rate`, by layer; None where a run has not written them."""
    key = f"ternary/{name}_by_layer"
    found = [line for line in lines if isinstance(line.get(key), list) and line[key]]
    if not found:
        return None
    found = found[:: max(1, -(-len(found) // _MOST_COLUMNS))]
    depth = min(len(line[key]) for line in found)
    shares = [[float(line[key][layer]) for line in found] for layer in range(depth)]
    return LayerHealth([f"layer {layer}" for layer in range(depth)], [f"{line['step']:,}" for line in found], shares)
