"""Trees of arrays, flat: every array by its dotted path."""

from typing import Any, cast

import mlx.core as mx
from mlx.utils import tree_flatten


def flat_arrays(tree: Any) -> dict[str, mx.array]:
    """The arrays of a tree, such as a module's parameters, by dotted path."""
    return cast(dict[str, mx.array], tree_flatten(tree, destination={}))
