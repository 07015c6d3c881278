"""Causal attention within segments by jax's splash kernel for TPUs (jax.experimental.pallas.ops.tpu)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask import MultiHeadMask

from jaxlm.ops.shapes import Keys, Queries, SegmentIds, Values
from jaxlm.parallel.sharding import mesh_axes

# Tokens of the kernel's largest tile; tiles are multiples of LANES, the width of a TPU's vectors.
TILE = 512
LANES = 128


def splash_attention(
    queries: Queries, keys: Keys, values: Values, segment_ids: SegmentIds | None, *, interpret: bool = False
) -> Queries:
    """Attend queries `[B, L, N, H]` to keys and values `[B, L, K, H]` at or before them in their own segment.

    `interpret` runs the kernel's steps one by one on any device. Raises ValueError where L is not a multiple of LANES.
    """
    B, L, _, H = queries.shape
    if L % LANES:
        raise ValueError(f"seq_len: found {L}, expected a multiple of {LANES} for splash attention; or --attention xla")
    segments = jnp.zeros((B, L), jnp.int32) if segment_ids is None else jnp.asarray(segment_ids)

    def attend(queries, keys, values, segments):
        kernel = _kernel(queries.shape[2], L, interpret)

        def one(q, k, v, ids):
            q, k, v = (jnp.moveaxis(x, 1, 0) for x in (q, k, v))
            return jnp.moveaxis(kernel(q, k, v, segment_ids=splash.SegmentIds(ids, ids)), 0, 1)

        return jax.vmap(one)(queries, keys, values, segments)

    scaled = (queries * H**-0.5).astype(queries.dtype)  # the kernel leaves the scale to its caller
    if jax.sharding.get_abstract_mesh().empty:
        return attend(scaled, keys, values, segments)
    # A kernel is opaque to the partitioner: every device runs it on its own rows and heads.
    heads, rows = mesh_axes("batch", None, "mixed", None), mesh_axes("batch", None)
    shared = jax.shard_map(attend, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False)
    return shared(scaled, keys, values, segments)


def _kernel(num_heads: int, length: int, interpret: bool) -> Callable[..., Any]:
    # The largest tile that divides the sequence.
    tile = next(size for size in range(min(TILE, length), 0, -LANES) if length % size == 0)
    sizes = splash.BlockSizes(
        block_q=tile,
        block_kv=tile,
        block_q_dkv=tile,
        block_kv_dkv=tile,
        block_q_dq=tile,
        block_kv_dq=tile,
    )
    mask = MultiHeadMask([splash.CausalMask((length, length))] * num_heads)
    return splash.make_splash_mha(mask, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret)
