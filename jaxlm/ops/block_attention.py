"""Causal attention within segments by blocks of queries, with its own backward pass; for any device.

No score outlives its block: the backward pass computes them again from the logarithms of the softmaxes' sums, which are
kept (arXiv 2307.08691). The blocks of a group run one after another and see the keys up to their group's end, so most
of what causality hides is never computed.
"""

from collections.abc import Iterator
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxlm.ops.shapes import SegmentIds

# What attention gives, by the name that rematerialization knows it by.
MIXED = "mixed"
# Groups of blocks that a program unrolls.
GROUPS = 4
# The fewest and the most queries of a block; between them, one block a group.
BLOCK = (64, 128)
_HIDDEN = -1e30  # finite: a padded query that sees nothing gives numbers


class Blocks(NamedTuple):
    """How a sequence is cut: the queries of a block, and the first and the last block of every group."""

    size: int
    groups: list[tuple[int, int]]

    def cut(self, x: jax.Array, axis: int) -> jax.Array:
        """Blocks of `x` along an axis, filled up at the end, as a new leading axis."""
        padding = [(0, 0)] * x.ndim
        padding[axis] = (0, -x.shape[axis] % self.size)
        x = jnp.pad(x, padding)
        return jnp.moveaxis(x.reshape(*x.shape[:axis], -1, self.size, *x.shape[axis + 1 :]), axis, 0)

    def by_group(self, rows: Any) -> Iterator[tuple[Any, int]]:
        """What has a row for every block, group by group; and how many tokens the queries of a group can see."""
        for first, last in self.groups:
            yield jax.tree.map(itemgetter(slice(first, last)), rows), last * self.size

    def join(self, blocks: list[jax.Array], axis: int, length: int) -> jax.Array:
        """The blocks of all groups as one axis again, without what filled it up."""
        x = jnp.moveaxis(jnp.concatenate(blocks), 0, axis)
        x = x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
        return jax.lax.slice_in_dim(x, 0, length, axis=axis)


def blocks_of(length: int, size: int) -> Blocks:
    """The blocks of a sequence, in at most GROUPS groups."""
    count = -(-length // size)
    step = -(-count // GROUPS)
    return Blocks(size, [(first, min(first + step, count)) for first in range(0, count, step)])


def is_seen(
    start: jax.Array, count: int, end: int, own_segments: SegmentIds | None, segments: SegmentIds | None
) -> jax.Array:
    """Which of the keys before `end` are at or before each of `count` queries from `start` on, in its own segment.

    From segments of the queries `[B, count]` and of the keys `[B, end]`, or None where all share one. Gives
    `[B or 1, count, end]`.
    """
    places = start + jnp.arange(count)
    seen = (places[:, None] >= jnp.arange(end)[None])[None]
    if own_segments is None or segments is None:
        return seen
    return seen & (own_segments[:, :, None] == segments[:, None])


def block_attention(
    queries: jax.Array, keys: jax.Array, values: jax.Array, segment_ids: SegmentIds | None
) -> jax.Array:
    """Attend queries `[B, L, N, H]` to keys and values `[B, L, K, H]` at or before them in their own segment."""
    B, L, N, H = queries.shape
    K = keys.shape[2]
    # R queries read each key; heads before tokens, so that a block of them is one matrix a head.
    queries = queries.reshape(B, L, K, N // K, H).transpose(0, 2, 3, 1, 4)
    keys, values = (x.transpose(0, 2, 1, 3) for x in (keys, values))
    mixed = _attention(queries, keys, values, segment_ids)
    return mixed.transpose(0, 3, 1, 2, 4).reshape(B, L, N, H)


@jax.custom_vjp
def _attention(queries, keys, values, segment_ids):
    """Queries `[B, K, R, L, H]`, keys and values `[B, K, L, H]`."""
    return _forward(queries, keys, values, segment_ids)[0]


def _forward(queries, keys, values, segment_ids):
    L = queries.shape[3]
    blocks = _blocks(L)
    mixed, log_sums = [], []
    for rows, end in blocks.by_group(_rows(blocks, queries, segment_ids)):
        attend = partial(_attend, seen=_seen(end, keys, values, segment_ids))
        of_group = jax.lax.map(attend, rows)
        mixed.append(of_group[0])
        log_sums.append(of_group[1])
    mixed = checkpoint_name(blocks.join(mixed, 3, L), MIXED)
    log_sums = checkpoint_name(blocks.join(log_sums, 3, L), MIXED)
    return mixed, (queries, keys, values, segment_ids, log_sums)


def _backward(residuals, d_mixed):
    queries, keys, values, segment_ids, log_sums = residuals
    L = queries.shape[3]
    blocks = _blocks(L)
    all_rows = (_rows(blocks, queries, segment_ids), blocks.cut(d_mixed, 3), blocks.cut(log_sums, 3))
    d_queries = []
    d_keys, d_values = jnp.zeros_like(keys), jnp.zeros_like(values)
    for rows, end in blocks.by_group(all_rows):
        seen = _seen(end, keys, values, segment_ids)
        zeros = jnp.zeros_like(seen[0])
        (of_keys, of_values), of_queries = jax.lax.scan(partial(_gradient, seen=seen), (zeros, zeros), rows)
        d_queries.append(of_queries)
        unseen = [(0, 0), (0, 0), (0, L - of_keys.shape[2]), (0, 0)]
        d_keys, d_values = d_keys + jnp.pad(of_keys, unseen), d_values + jnp.pad(of_values, unseen)
    return blocks.join(d_queries, 3, L), d_keys, d_values, None


_attention.defvjp(_forward, _backward)


def _blocks(length: int) -> Blocks:
    smallest, largest = BLOCK
    return blocks_of(length, min(length, largest, max(smallest, -(-length // GROUPS))))


def _rows(blocks: Blocks, queries: jax.Array, segment_ids: SegmentIds | None) -> Any:
    """By block: queries, their segments and the place of the first."""
    cut = blocks.cut(queries, 3)
    segments = None if segment_ids is None else blocks.cut(jnp.asarray(segment_ids), 1)
    # Tied to the queries: what depends on places alone, the masks of all blocks, jax would compute once for all layers
    # and keep.
    cut, places = jax.lax.optimization_barrier((cut, jnp.arange(len(cut)) * blocks.size))
    return cut, segments, places


def _seen(end: int, keys: jax.Array, values: jax.Array, segment_ids: SegmentIds | None) -> Any:
    return keys[:, :, :end], values[:, :, :end], None if segment_ids is None else segment_ids[:, :end]


def _attend(row, seen):
    """The mixed values `[B, K, R, T, H]` of one block, and the logarithms of its softmaxes' sums `[B, K, R, T, 1]`."""
    _, values, _ = seen
    scores = _scores(row, seen)
    largest = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - largest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    mixed = _product("bkrts,bksh->bkrth", weights.astype(values.dtype), values) / total
    return mixed.astype(values.dtype), largest + jnp.log(total)


def _gradient(sums, row, seen):
    """Gradients of one block: those of keys and values added to `sums`, and that of its queries.

    The sums are of the activations' type. Over the 128 blocks of 16,384 tokens, in bfloat16, they err twice as much as
    the rounding of one block does.
    """
    row, d_mixed, log_sum = row
    keys, values, _ = seen
    weights = jnp.exp(_scores(row, seen) - log_sum)
    d_weights = _product("bkrth,bksh->bkrts", d_mixed, values).astype(keys.dtype)
    # From the block itself: with what the forward pass mixed kept for it, a step was no faster.
    common = jnp.sum(weights * d_weights, axis=-1, keepdims=True)
    d_scores = (weights * (d_weights - common) * _scale(keys)).astype(keys.dtype)
    d_keys = _product("bkrts,bkrth->bksh", d_scores, row[0])
    d_values = _product("bkrts,bkrth->bksh", weights.astype(keys.dtype), d_mixed)
    d_queries = _product("bkrts,bksh->bkrth", d_scores, keys).astype(keys.dtype)
    return (sums[0] + d_keys.astype(keys.dtype), sums[1] + d_values.astype(keys.dtype)), d_queries


def _scores(row, seen):
    """Scores `[B, K, R, T, S]` of one block, with _HIDDEN added where the query does not see the key."""
    queries, own_segments, start = row
    keys, _, segments = seen
    scores = _product("bkrth,bksh->bkrts", queries, keys) * _scale(keys)
    mask = is_seen(start, queries.shape[3], keys.shape[2], own_segments, segments)
    return scores + jnp.where(mask, 0, _HIDDEN)[:, None, None]


def _scale(keys: jax.Array) -> float:
    return keys.shape[-1] ** -0.5


def _product(form: str, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(form, x, y, preferred_element_type=jnp.float32)
