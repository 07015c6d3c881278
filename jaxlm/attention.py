"""Causal attention within segments, by the kernel that suits the device; the scores of a long sequence never exist.

`xla` runs everywhere, in blocks of queries: the backward pass computes a block's scores again instead of keeping them
(arXiv 2112.05682). The blocks of a group run one after another and see the keys up to their group's end, so most of
what causality hides is never computed. `cudnn` is NVIDIA's fused kernel, `splash` the one for TPUs.
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxlm.gpu import AMPERE, is_ampere
from jaxlm.shapes import SegmentIds
from jaxlm.sharding import target_platform

AttentionKernel = Literal["xla", "cudnn", "splash"]
# What attention gives, by the name that rematerialization knows it by.
MIXED = "mixed"
# jax's name for cuDNN's forward pass. It gives what its backward pass needs as well, which no name of ours reaches.
CUDNN_FORWARD = "dot_product_attention_fwd_wrapper"
# Queries of a block. cuDNN takes a whole sequence in one go up to there: it keeps no scores, but it is told which
# tokens share a document by a mask of all pairs.
BLOCK = {"xla": 128, "cudnn": 4096}
# Groups of blocks that a program unrolls.
GROUPS = 4
_CUDNN_HEAD_DIM = 128


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
        from jaxlm.splash_attention import splash_attention  # takes seconds to import

        return checkpoint_name(splash_attention(queries, keys, values, segment_ids), MIXED)
    if kernel == "cudnn" and queries.shape[1] <= BLOCK[kernel]:
        same = None if segment_ids is None else (segment_ids[:, :, None] == segment_ids[:, None])[:, None]
        return jax.nn.dot_product_attention(queries, keys, values, mask=same, is_causal=True, implementation=kernel)
    return checkpoint_name(_by_blocks(queries, keys, values, segment_ids, kernel), MIXED)


def _by_blocks(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    segment_ids: SegmentIds | None,
    kernel: Literal["xla", "cudnn"],
) -> jax.Array:
    B, L = queries.shape[:2]
    block = BLOCK[kernel]
    segments = jnp.zeros((B, L), jnp.int32) if segment_ids is None else jnp.asarray(segment_ids)
    attend = jax.checkpoint(functools.partial(_attend, kernel))
    if block >= L:
        return attend((queries, segments, 0), (keys, values, segments))
    blocks = -(-L // block)
    rows = (_cut(queries, block), _cut(segments, block), jnp.arange(blocks) * block)
    group_size = -(-blocks // GROUPS)
    outputs = []
    for first in range(0, blocks, group_size):
        last = min(first + group_size, blocks)
        seen = tuple(x[:, : last * block] for x in (keys, values, segments))
        group = jax.tree.map(lambda x, a=first, b=last: x[a:b], rows)
        outputs.append(jax.lax.map(lambda rows, seen=seen: attend(rows, seen), group))
    return jnp.moveaxis(jnp.concatenate(outputs), 0, 1).reshape(B, blocks * block, *queries.shape[2:])[:, :L]


def _attend(kernel: Literal["xla", "cudnn"], rows: Any, seen: Any) -> jax.Array:
    """Attend one block, (queries, segments, place of the first), to (keys, values, segments)."""
    queries, own_segments, start = rows
    keys, values, segments = seen
    places = start + jnp.arange(queries.shape[1])
    causal = places[:, None] >= jnp.arange(keys.shape[1])[None]
    mask = causal[None] & (own_segments[:, :, None] == segments[:, None])
    if queries.dtype == jnp.float16 and target_platform() == "cpu":
        # XLA has no product of float16 summed in float32 there.
        queries, keys, values = (x.astype(jnp.float32) for x in (queries, keys, values))
        wide = _attend(kernel, (queries, own_segments, start), (keys, values, segments))
        return wide.astype(jnp.float16)
    return jax.nn.dot_product_attention(queries, keys, values, mask=mask[:, None], implementation=kernel)


def _cut(x: jax.Array, block: int) -> jax.Array:
    """`[B, L, ...]` -> `[blocks, B, block, ...]`, filled up at the end."""
    padding = ((0, 0), (0, -x.shape[1] % block), *[(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(jnp.pad(x, padding).reshape(x.shape[0], -1, block, *x.shape[2:]), 1, 0)
