"""Sequences split by tokens, and whole ones split by heads or channels (Ulysses, arXiv 2309.14509).

A token mixer reads all earlier tokens, and treats each head or channel by itself. So before it the devices along
`sequence` exchange their tokens of all heads for all tokens of some heads, and after it they exchange them back.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.parallel.sharding import constrain, parts_of

# Logical names of the second and third dimension of split and of whole sequences.
_BOTH = (("length", "wide"), (None, "mixed"))


def whole_sequences(*arrays: Any) -> tuple[Any, ...]:
    """Return arrays `[B, L, heads or channels, ...]` whole along L, and split by heads or channels."""
    return tuple(_exchanged(array, *_BOTH) for array in arrays)


def split_sequences(array: Any) -> Any:
    """Return an array `[B, L, heads or channels, ...]` split by tokens again."""
    return _exchanged(array, *reversed(_BOTH))


def repeated_to_split(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Return keys and values `[B, L, K, H]` with each head repeated as often as a mesh needs to split them.

    K comes to a multiple of these devices. They divide the heads of queries, so K does too (see `check_mixers`).
    """
    parts = parts_of("mixed")
    if parts_of("length") == 1:
        return arrays
    return tuple(jnp.repeat(array, parts // math.gcd(array.shape[2], parts), axis=2) for array in arrays)


def _exchanged(array: Any, *layouts: tuple[str | None, str]) -> Any:
    if parts_of("length") > 1:
        # Both layouts are stated, so that XLA exchanges here, forward and backward.
        for layout in layouts:
            array = constrain(array, "batch", *layout, *[None] * (array.ndim - 3))
    return array
