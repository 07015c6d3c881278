"""Token mixers: how a position sees the ones before it."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from jaxlm.layers import RMSNorm, block_linear, rotary
from jaxlm.shapes import AttentionMask, Hidden, Positions
from jaxlm.spec.config import ModelConfig


class KVCache(flax.struct.PyTreeNode):
    """Keys and values by absolute position, `[B, S, K, H]`; with a leading layer axis for a whole model.

    No length is kept: a query at position p reads slots 0..p, so slots beyond what was written are never seen.
    """

    # Not typed more closely: jax also builds the node with placeholders in its leaves.
    keys: Any
    values: Any


class Attention(nn.Module):
    """Grouped-query attention with rotary positions, and a norm before `o_proj` where there are sub-norms."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x: Hidden, positions: Positions, mask: AttentionMask | None, cache: KVCache | None
    ) -> tuple[Hidden, KVCache | None]:
        config = self.config
        B, L, _ = x.shape
        queries = self._heads("q_proj", config.num_heads, x)
        keys = self._heads("k_proj", config.num_kv_heads, x)
        values = self._heads("v_proj", config.num_kv_heads, x)
        queries = rotary(queries, positions, config.rope_theta)
        keys = rotary(keys, positions, config.rope_theta)
        if cache is not None:
            rows = jnp.arange(B)[:, None]
            keys = cache.keys.at[rows, positions].set(keys)
            values = cache.values.at[rows, positions].set(values)
            cache = KVCache(keys, values)
        mixed = jax.nn.dot_product_attention(
            queries, keys, values, mask=None if mask is None else mask[:, None], is_causal=mask is None
        )
        mixed = mixed.reshape(B, L, config.num_heads * config.head_dim)
        if config.sub_norm:
            mixed = RMSNorm(config.norm_eps, name="attn_sub_norm")(mixed)
        return block_linear(config, config.hidden_size, "o_proj")(mixed), cache

    def _heads(self, name: str, num_heads: int, x: Hidden) -> jax.Array:
        projected = block_linear(self.config, num_heads * self.config.head_dim, name)(x)
        return projected.reshape(*x.shape[:2], num_heads, self.config.head_dim)
