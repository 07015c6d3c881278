"""Causal attention within segments, by the kernel that suits the device, and attention to a cache.

`reference_attention` is the definition. No kernel ever holds the scores of a long sequence. `xla` runs everywhere, in
tiles of queries (`jaxlm.ops.tiled_attention`). `cudnn` is NVIDIA's fused kernel, `splash` the one for TPUs.
"""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxlm.common.step_choices import AttentionKernel
from jaxlm.ops.machine.gpu import AMPERE, is_ampere
from jaxlm.ops.shapes import CachedKeys, CachedValues, Keys, Positions, Queries, SegmentIds, Values
from jaxlm.ops.tiled_attention import ATTENTION_OUTPUT, tiled_attention, tiles_of, visible_keys


def reference_attention(queries: Queries, keys: Keys, values: Values, segment_ids: SegmentIds | None) -> Queries:
    """Return softmax(Q K^T / sqrt(H)) V `[B, L, N, H]` in float32, as defined; tests compare every kernel with it.

    Head n of queries `[B, L, N, H]` reads head n // G of keys and values `[B, L, K, H]`, G = N / K (arXiv 1706.03762,
    2305.13245). The query at position l sees the keys at positions s <= l of its own segment.
    """
    (B, L, N, H), K = queries.shape, keys.shape[2]
    queries, keys, values = (x.astype(jnp.float32) for x in (queries, keys, values))
    scores = jnp.einsum("blkgh,bskh->bkgls", queries.reshape(B, L, K, N // K, H), keys) / H**0.5
    visible = jnp.tril(jnp.ones((L, L), bool))[None]
    if segment_ids is not None:
        visible = visible & (segment_ids[:, :, None] == segment_ids[:, None])
    weights = jax.nn.softmax(jnp.where(visible[:, None, None], scores, -jnp.inf), axis=-1)
    return jnp.einsum("bkgls,bskh->blkgh", weights, values).reshape(B, L, N, H)


# jax's name for cuDNN's forward pass. It also returns what its backward pass needs, which no name of ours reaches.
CUDNN_FORWARD = "dot_product_attention_fwd_wrapper"
# Tokens up to which cuDNN takes a whole sequence at once; queries of a tile of longer ones.
CUDNN_TILE = 4096
_CUDNN_HEAD_DIM = 128
# Queries of a prompt that are attended to a cache at a time.
CACHED_TILE = 128


def choose_kernel(asked: AttentionKernel | Literal["auto"], dtype: Any, head_dim: int, device: Any) -> AttentionKernel:
    """Return the kernel for a device: the one asked for, or with `auto` the one that was measured fastest there.

    Raises ValueError where the device, the precision or the heads' size do not allow the one asked for.
    """
    cudnn = is_ampere(device) and jnp.dtype(dtype).itemsize == 2 and head_dim % 8 == 0 and head_dim <= _CUDNN_HEAD_DIM
    if asked == "auto":
        return "cudnn" if cudnn else "xla"
    needs = {
        "cudnn": (
            cudnn,
            f"a 16-bit dtype, heads of a multiple of 8 up to {_CUDNN_HEAD_DIM}, and an NVIDIA GPU of compute "
            f"capability {AMPERE} or more",
        ),
        "splash": (device.platform == "tpu", "a TPU"),
    }
    fits, expected = needs.get(asked, (True, ""))
    if not fits:
        raise ValueError(
            f"attention: {asked!r} needs {expected}; found dtype {jnp.dtype(dtype).name}, heads of {head_dim} and a "
            f"device of kind {device.device_kind!r}. Set --attention auto"
        )
    return asked


def causal_attention(
    queries: Queries,
    keys: Keys,
    values: Values,
    segment_ids: SegmentIds | None,
    kernel: AttentionKernel = "xla",
) -> Queries:
    """Attend queries `[B, L, N, H]` to keys and values `[B, L, K, H]` at or before them in their own segment."""
    if kernel == "splash":
        from jaxlm.ops.splash_attention import splash_attention  # takes seconds to import

        return checkpoint_name(splash_attention(queries, keys, values, segment_ids), ATTENTION_OUTPUT)
    if kernel == "xla":
        return tiled_attention(queries, keys, values, segment_ids)
    if queries.shape[1] > CUDNN_TILE:
        return checkpoint_name(_cudnn_by_tiles(queries, keys, values, segment_ids), ATTENTION_OUTPUT)
    same = None if segment_ids is None else (segment_ids[:, :, None] == segment_ids[:, None])[:, None]
    return jax.nn.dot_product_attention(queries, keys, values, mask=same, is_causal=True, implementation=kernel)


def cached_attention(queries: Queries, keys: CachedKeys, values: CachedValues, positions: Positions) -> Queries:
    """Attend queries `[B, L, N, H]` at `positions` to a cache's keys and values `[B, K, S, H]` at or before them.

    No scores of a whole long prompt are held: CACHED_TILE queries are attended at a time.
    """
    (B, L, N, H), (K, S) = queries.shape, keys.shape[1:3]
    tiles = tiles_of(L, min(L, CACHED_TILE))
    grouped = queries.reshape(B, L, K, N // K, H)

    def attend(tile: tuple[jax.Array, jax.Array]) -> jax.Array:
        queries, positions = tile  # [B, T, K, G, H] and [B, T] of T queries; written l below
        scores = jnp.einsum("blkgh,bksh->bkgls", queries, keys, preferred_element_type=jnp.float32)
        visible = jnp.arange(S)[None, None] <= positions[:, :, None]
        weights = jax.nn.softmax(jnp.where(visible[:, None, None], scores * keys.shape[-1] ** -0.5, -jnp.inf), axis=-1)
        return jnp.einsum("bkgls,bksh->bkglh", weights.astype(values.dtype), values).transpose(0, 3, 1, 2, 4)

    outputs = jax.lax.map(attend, (tiles.cut(grouped, 1), tiles.cut(jnp.asarray(positions), 1)))
    return tiles.join([outputs], 1, L).reshape(queries.shape)


def _cudnn_by_tiles(queries: Queries, keys: Keys, values: Values, segment_ids: SegmentIds | None) -> Queries:
    """Attend by tiles: cuDNN keeps no scores, but takes a mask of all pairs, which grows with the square of L."""
    B, L = queries.shape[:2]
    tiles = tiles_of(L, CUDNN_TILE)
    segments = jnp.zeros((B, L), jnp.int32) if segment_ids is None else jnp.asarray(segment_ids)
    cut = tiles.cut(queries, 1)
    outputs = []
    for group, end in tiles.by_group((cut, tiles.cut(segments, 1), jnp.arange(len(cut)) * tiles.size)):
        visible = tuple(x[:, :end] for x in (keys, values, segments))
        outputs.append(jax.lax.map(partial(jax.checkpoint(_attend_tile), visible=visible), group))
    return tiles.join(outputs, 1, L)


def _attend_tile(tile: Any, visible: Any) -> jax.Array:
    """Attend one tile, (queries, segments, position of the first), to (keys, values, segments)."""
    queries, query_segments, start = tile
    keys, values, key_segments = visible
    mask = visible_keys(start, queries.shape[1], keys.shape[1], query_segments, key_segments)
    return jax.nn.dot_product_attention(queries, keys, values, mask=mask[:, None], implementation="cudnn")
