"""Causal attention within segments, by the kernel that suits the device, and attention to a cache.

The scores of a long sequence never exist. `xla` runs everywhere, in blocks of queries (`jaxlm.ops.block_attention`).
`cudnn` is NVIDIA's fused kernel, `splash` the one for TPUs.
"""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxlm.ops.block_attention import MIXED, block_attention, blocks_of, is_seen
from jaxlm.ops.gpu import AMPERE, is_ampere
from jaxlm.ops.shapes import Positions, SegmentIds

AttentionKernel = Literal["xla", "cudnn", "splash"]
# jax's name for cuDNN's forward pass. It gives what its backward pass needs as well, which no name of ours reaches.
CUDNN_FORWARD = "dot_product_attention_fwd_wrapper"
# Tokens up to which cuDNN takes a whole sequence in one go.
CUDNN_BLOCK = 4096
_CUDNN_HEAD_DIM = 128
# Queries of a prompt that see a cache at a time.
CACHED_BLOCK = 128


def choose_kernel(asked: AttentionKernel | Literal["auto"], dtype: Any, head_dim: int, device: Any) -> AttentionKernel:
    """The kernel for a device: what was asked for, or with `auto` the one that was measured fastest there.

    Raises ValueError where the device, the precision or the heads' size do not allow what was asked for.
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
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    segment_ids: SegmentIds | None,
    kernel: AttentionKernel = "xla",
) -> jax.Array:
    """Attend queries `[B, L, N, H]` to keys and values `[B, L, K, H]` at or before them in their own segment."""
    if kernel == "splash":
        from jaxlm.ops.splash_attention import splash_attention  # takes seconds to import

        return checkpoint_name(splash_attention(queries, keys, values, segment_ids), MIXED)
    if kernel == "xla":
        return block_attention(queries, keys, values, segment_ids)
    if queries.shape[1] > CUDNN_BLOCK:
        return checkpoint_name(_cudnn_by_blocks(queries, keys, values, segment_ids), MIXED)
    same = None if segment_ids is None else (segment_ids[:, :, None] == segment_ids[:, None])[:, None]
    return jax.nn.dot_product_attention(queries, keys, values, mask=same, is_causal=True, implementation=kernel)


def cached_attention(queries: jax.Array, keys: jax.Array, values: jax.Array, positions: Positions) -> jax.Array:
    """Attend queries `[B, L, N, H]` at `positions` to a cache's keys and values `[B, K, S, H]` at or before them.

    The scores of a long prompt never exist: CACHED_BLOCK queries see the cache at a time.
    """
    L, K, S = queries.shape[1], keys.shape[1], keys.shape[2]
    blocks = blocks_of(L, min(L, CACHED_BLOCK))
    grouped = queries.reshape(*queries.shape[:2], K, -1, queries.shape[-1])

    def attend(row: tuple[jax.Array, jax.Array]) -> jax.Array:
        queries, positions = row
        scores = jnp.einsum("btkrh,bksh->bkrts", queries, keys, preferred_element_type=jnp.float32)
        seen = jnp.arange(S)[None, None] <= positions[:, :, None]
        weights = jax.nn.softmax(jnp.where(seen[:, None, None], scores * keys.shape[-1] ** -0.5, -jnp.inf), axis=-1)
        return jnp.einsum("bkrts,bksh->bkrth", weights.astype(values.dtype), values).transpose(0, 3, 1, 2, 4)

    mixed = jax.lax.map(attend, (blocks.cut(grouped, 1), blocks.cut(jnp.asarray(positions), 1)))
    return blocks.join([mixed], 1, L).reshape(queries.shape)


def _cudnn_by_blocks(
    queries: jax.Array, keys: jax.Array, values: jax.Array, segment_ids: SegmentIds | None
) -> jax.Array:
    """cuDNN keeps no scores, but is told which tokens share a document by a mask of all pairs."""
    B, L = queries.shape[:2]
    blocks = blocks_of(L, CUDNN_BLOCK)
    segments = jnp.zeros((B, L), jnp.int32) if segment_ids is None else jnp.asarray(segment_ids)
    cut = blocks.cut(queries, 1)
    outputs = []
    for rows, end in blocks.by_group((cut, blocks.cut(segments, 1), jnp.arange(len(cut)) * blocks.size)):
        seen = tuple(x[:, :end] for x in (keys, values, segments))
        outputs.append(jax.lax.map(partial(jax.checkpoint(_attend), seen=seen), rows))
    return blocks.join(outputs, 1, L)


def _attend(row: Any, seen: Any) -> jax.Array:
    """Attend one block, (queries, segments, place of the first), to (keys, values, segments)."""
    queries, own_segments, start = row
    keys, values, segments = seen
    mask = is_seen(start, queries.shape[1], keys.shape[1], own_segments, segments)
    return jax.nn.dot_product_attention(queries, keys, values, mask=mask[:, None], implementation="cudnn")
