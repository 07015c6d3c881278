"""Causal attention within segments by tiles of queries, with its own backward pass; for any device.

FlashAttention's mathematics (arXiv 2205.14135, 2307.08691), with tiles of queries alone. Per head, for the queries Q of
a tile, the keys K and values V that they may see, and the gradient dO of the output O:

    forward     S = Q K^T / sqrt(H) + mask     m = max(S)     z = m + log sum exp(S - m)     O = exp(S - z) V
    backward    P = exp(S - z)     dP = dO V^T     dS = P * (dP - sum(P * dP))
                dV = P^T dO        dQ = dS K / sqrt(H)     dK = dS^T Q / sqrt(H)

max and sum run along the keys. Only O and z are saved: no score outlives its tile, since the backward pass computes S
again. The tiles of a group run one after another and see the keys up to their group's end, so most of the scores that
causality masks are never computed.
"""

from collections.abc import Iterator
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxlm.ops.shapes import Keys, KeySegmentIds, Queries, SegmentIds, Values

# The name by which rematerialization knows the output of attention.
ATTENTION_OUTPUT = "attention_output"
# And that of z, a number per query and head. Where nothing else needs the output again (a sub-norm does), the backward
# pass then computes no attention forward.
ATTENTION_LOG_SUMS = "attention_log_sums"
# Groups of tiles that a program unrolls.
GROUPS = 4
# Queries of a tile.
TILE_SIZE = 128
_HIDDEN = -1e30  # finite: a padded query that sees nothing gets finite numbers


class Tiles(NamedTuple):
    """The tiles of a sequence: the queries of each, and the first and the last tile of every group."""

    size: int
    groups: list[tuple[int, int]]

    def cut(self, x: jax.Array, axis: int) -> jax.Array:
        """Return the tiles of `x` along an axis as a new leading axis, with zeros after the last."""
        padding = [(0, 0)] * x.ndim
        padding[axis] = (0, -x.shape[axis] % self.size)
        x = jnp.pad(x, padding)
        return jnp.moveaxis(x.reshape(*x.shape[:axis], -1, self.size, *x.shape[axis + 1 :]), axis, 0)

    def by_group(self, tiles: Any) -> Iterator[tuple[Any, int]]:
        """Yield each group's part of a tree of arrays `[tiles, ...]`, and the number of keys that the group can see."""
        for first, last in self.groups:
            yield jax.tree.map(itemgetter(slice(first, last)), tiles), last * self.size

    def join(self, groups: list[jax.Array], axis: int, length: int) -> jax.Array:
        """Return the tiles of all groups as one axis again, without the padding."""
        x = jnp.moveaxis(jnp.concatenate(groups), 0, axis)
        x = x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
        return jax.lax.slice_in_dim(x, 0, length, axis=axis)


def tiles_of(length: int, size: int) -> Tiles:
    """Return the tiles of a sequence, in at most GROUPS groups."""
    count = -(-length // size)
    step = -(-count // GROUPS)
    return Tiles(size, [(first, min(first + step, count)) for first in range(0, count, step)])


def visible_keys(
    start: jax.Array, count: int, end: int, query_segments: SegmentIds | None, key_segments: KeySegmentIds | None
) -> jax.Array:
    """Return the mask `[B or 1, count, end]` of the keys at or before each query in the query's own segment.

    Queries are those at positions `start` to `start + count`, keys those before `end`. Segments are those of the
    queries `[B, count]` and of the keys `[B, end]`, or None where all share one.
    """
    positions = start + jnp.arange(count)
    visible = (positions[:, None] >= jnp.arange(end)[None])[None]
    if query_segments is None or key_segments is None:
        return visible
    return visible & (query_segments[:, :, None] == key_segments[:, None])


def tiled_attention(queries: Queries, keys: Keys, values: Values, segment_ids: SegmentIds | None) -> Queries:
    """Attend queries `[B, L, N, H]` to keys and values `[B, L, K, H]` at or before them in their own segment."""
    B, L, N, H = queries.shape
    K = keys.shape[2]
    # G = N / K queries read each key; heads come before tokens, so that a tile of them is one matrix per head.
    queries = queries.reshape(B, L, K, N // K, H).transpose(0, 2, 3, 1, 4)  # [B, K, G, L, H]
    keys, values = (x.transpose(0, 2, 1, 3) for x in (keys, values))  # [B, K, L, H]
    attention_output = _attention(queries, keys, values, segment_ids)
    return attention_output.transpose(0, 3, 1, 2, 4).reshape(B, L, N, H)


@jax.custom_vjp
def _attention(queries, keys, values, segment_ids):
    """Attend queries `[B, K, G, L, H]` to keys and values `[B, K, L, H]`."""
    return _forward(queries, keys, values, segment_ids)[0]


def _forward(queries, keys, values, segment_ids):
    L = queries.shape[3]
    tiles = _choose_tiles(L)
    outputs, log_sums = [], []
    for group, end in tiles.by_group(_query_tiles(tiles, queries, segment_ids)):
        attend = partial(_attend_tile, visible=_keys_before(end, keys, values, segment_ids))
        of_group = jax.lax.map(attend, group)
        outputs.append(of_group[0])
        log_sums.append(of_group[1])
    attention_output = checkpoint_name(tiles.join(outputs, 3, L), ATTENTION_OUTPUT)
    log_sums = checkpoint_name(tiles.join(log_sums, 3, L), ATTENTION_LOG_SUMS)
    return attention_output, (queries, keys, values, segment_ids, log_sums)


def _backward(residuals, d_output):
    queries, keys, values, segment_ids, log_sums = residuals
    L = queries.shape[3]
    tiles = _choose_tiles(L)
    all_tiles = (_query_tiles(tiles, queries, segment_ids), tiles.cut(d_output, 3), tiles.cut(log_sums, 3))
    d_queries = []
    d_keys, d_values = jnp.zeros_like(keys), jnp.zeros_like(values)
    for group, end in tiles.by_group(all_tiles):
        visible = _keys_before(end, keys, values, segment_ids)
        zeros = jnp.zeros_like(visible[0])
        gradient = partial(_tile_gradient, visible=visible)
        (of_keys, of_values), of_queries = jax.lax.scan(gradient, (zeros, zeros), group)
        d_queries.append(of_queries)
        later_keys = [(0, 0), (0, 0), (0, L - of_keys.shape[2]), (0, 0)]
        d_keys, d_values = d_keys + jnp.pad(of_keys, later_keys), d_values + jnp.pad(of_values, later_keys)
    return tiles.join(d_queries, 3, L), d_keys, d_values, None


_attention.defvjp(_forward, _backward)


def _choose_tiles(length: int) -> Tiles:
    return tiles_of(length, min(length, TILE_SIZE))


def _query_tiles(tiles: Tiles, queries: jax.Array, segment_ids: SegmentIds | None) -> Any:
    """Return, by tile, the queries, their segments and the position of the first."""
    cut = tiles.cut(queries, 3)
    segments = None if segment_ids is None else tiles.cut(jnp.asarray(segment_ids), 1)
    # Tied to the queries: jax would compute the masks of all tiles, which depend on positions alone, once for all
    # layers, and keep them.
    cut, starts = jax.lax.optimization_barrier((cut, jnp.arange(len(cut)) * tiles.size))
    return cut, segments, starts


def _keys_before(end: int, keys: jax.Array, values: jax.Array, segment_ids: SegmentIds | None) -> Any:
    return keys[:, :, :end], values[:, :, :end], None if segment_ids is None else segment_ids[:, :end]


def _attend_tile(tile, visible):
    """Return the output O `[B, K, G, T, H]` of a tile of T queries, and z `[B, K, G, T, 1]`; l is T's letter below."""
    _, values, _ = visible
    scores = _scores(tile, visible)
    largest = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - largest)  # O is divided by their sum after the product, which is smaller
    total = jnp.sum(weights, axis=-1, keepdims=True)
    output = _product("bkgls,bksh->bkglh", weights.astype(values.dtype), values) / total
    return output.astype(values.dtype), largest + jnp.log(total)


def _tile_gradient(sums, tile, visible):
    """Return the gradients of keys and values, added to `sums`, and that of the tile's queries.

    The sums are of the activations' type. Over the 128 tiles of 16,384 tokens, in bfloat16, they err twice as much as
    the rounding of one tile does.
    """
    tile, d_output, log_sum = tile  # queries and d_output [B, K, G, T, H], log_sum [B, K, G, T, 1]
    keys, values, _ = visible  # [B, K, S, H]
    # P, dP and dS are [B, K, G, T, S]; dK and dV sum over the G queries of each key.
    weights = jnp.exp(_scores(tile, visible) - log_sum)
    d_weights = _product("bkglh,bksh->bkgls", d_output, values).astype(keys.dtype)
    # Equal to sum(dO * O). That needs O as a residual, and was no faster.
    common = jnp.sum(weights * d_weights, axis=-1, keepdims=True)
    d_scores = (weights * (d_weights - common) * _scale(keys)).astype(keys.dtype)
    d_keys = _product("bkgls,bkglh->bksh", d_scores, tile[0])
    d_values = _product("bkgls,bkglh->bksh", weights.astype(keys.dtype), d_output)
    d_queries = _product("bkgls,bksh->bkglh", d_scores, keys).astype(keys.dtype)
    return (sums[0] + d_keys.astype(keys.dtype), sums[1] + d_values.astype(keys.dtype)), d_queries


def _scores(tile, visible):
    """Return the scores S `[B, K, G, T, S]` of one tile, with _HIDDEN added where the key is not visible."""
    queries, query_segments, start = tile
    keys, _, key_segments = visible
    scores = _product("bkglh,bksh->bkgls", queries, keys) * _scale(keys)
    mask = visible_keys(start, queries.shape[3], keys.shape[2], query_segments, key_segments)
    return scores + jnp.where(mask, 0, _HIDDEN)[:, None, None]


def _scale(keys: jax.Array) -> float:
    return keys.shape[-1] ** -0.5


def _product(form: str, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(form, x, y, preferred_element_type=jnp.float32)
