"""Causal attention within segments, in blocks of queries: the scores of a whole sequence never exist at once.

The backward pass computes a block's scores again instead of keeping them (arXiv 2112.05682). The blocks of a group run
one after another and see the keys up to their group's end, so most of what causality hides is never computed.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.shapes import SegmentIds

# Queries of a block, and how many groups of them a program unrolls.
BLOCK = 128
GROUPS = 4


def causal_attention(
    queries: jax.Array, keys: jax.Array, values: jax.Array, segment_ids: SegmentIds | None
) -> jax.Array:
    """Attend queries `[B, L, N, H]` to keys and values `[B, L, K, H]` at or before them in their own segment."""
    B, L = queries.shape[:2]
    segments = jnp.zeros((B, L), jnp.int32) if segment_ids is None else jnp.asarray(segment_ids)
    if L <= BLOCK:
        return _attend((queries, segments, 0), (keys, values, segments))
    blocks = -(-L // BLOCK)
    rows = (_in_blocks(queries, blocks), _in_blocks(segments, blocks), jnp.arange(blocks) * BLOCK)
    group_size = -(-blocks // GROUPS)
    outputs = []
    for first in range(0, blocks, group_size):
        last = min(first + group_size, blocks)
        seen = tuple(x[:, : last * BLOCK] for x in (keys, values, segments))
        group = jax.tree.map(lambda x, a=first, b=last: x[a:b], rows)
        outputs.append(jax.lax.map(lambda block, seen=seen: _attend(block, seen), group))
    return jnp.moveaxis(jnp.concatenate(outputs), 0, 1).reshape(B, blocks * BLOCK, *queries.shape[2:])[:, :L]


@jax.checkpoint
def _attend(rows: Any, seen: Any) -> jax.Array:
    """Attend one block, (queries, segments, place of the first), to (keys, values, segments)."""
    queries, own_segments, start = rows
    keys, values, segments = seen
    places = start + jnp.arange(queries.shape[1])
    causal = places[:, None] >= jnp.arange(keys.shape[1])[None]
    mask = causal[None] & (own_segments[:, :, None] == segments[:, None])
    return jax.nn.dot_product_attention(queries, keys, values, mask=mask[:, None])


def _in_blocks(x: jax.Array, blocks: int) -> jax.Array:
    """`[B, L, ...]` -> `[blocks, B, BLOCK, ...]`, filled up at the end."""
    padding = ((0, 0), (0, blocks * BLOCK - x.shape[1]), *[(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(jnp.pad(x, padding).reshape(x.shape[0], blocks, BLOCK, *x.shape[2:]), 1, 0)
