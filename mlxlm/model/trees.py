"""Flat dictionaries of the arrays in a tree, such as a module's parameters."""

from typing import Any, cast

import mlx.core as mx
from mlx.utils import tree_flatten


def flat_arrays(tree: Any) -> dict[str, mx.array]:
    """Return every array of a tree by its dotted path, such as `layers.0.mlp.down_proj.weight`."""
    return cast(dict[str, mx.array], tree_flatten(tree, destination={}))
