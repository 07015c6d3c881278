"""Token mixers, as in jaxlm/mixers.py."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.base import scaled_dot_product_attention

from jaxlm.spec.config import ModelConfig
from mlxlm.layers import block_linear


class Attention(nn.Module):
    """Grouped-query attention with rotary positions, and a norm before `o_proj` where there are sub-norms."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self._num_heads, self._num_kv_heads, self._head_dim = (
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
        )
        width = config.num_heads * config.head_dim
        kv_width = config.num_kv_heads * config.head_dim
        self.q_proj = block_linear(config, config.hidden_size, width)
        self.k_proj = block_linear(config, config.hidden_size, kv_width)
        self.v_proj = block_linear(config, config.hidden_size, kv_width)
        self.o_proj = block_linear(config, width, config.hidden_size)
        if config.sub_norm:
            self.attn_sub_norm = nn.RMSNorm(width, config.norm_eps)
        self._rotary = nn.RoPE(config.head_dim, traditional=False, base=config.rope_theta)

    def __call__(self, x: mx.array, mask: Any, cache: Any) -> mx.array:
        B, L, _ = x.shape
        queries = self._heads(self.q_proj(x), self._num_heads)
        keys = self._heads(self.k_proj(x), self._num_kv_heads)
        values = self._heads(self.v_proj(x), self._num_kv_heads)
        offset = 0 if cache is None else cache.offset
        queries, keys = self._rotary(queries, offset=offset), self._rotary(keys, offset=offset)
        if cache is not None:
            keys, values = cache.update_and_fetch(keys, values)
        mixed = scaled_dot_product_attention(queries, keys, values, cache=cache, scale=self._head_dim**-0.5, mask=mask)
        mixed = mixed.transpose(0, 2, 1, 3).reshape(B, L, -1)
        if "attn_sub_norm" in self:
            mixed = self.attn_sub_norm(mixed)
        return self.o_proj(mixed)

    def _heads(self, projected: mx.array, num_heads: int) -> mx.array:
        B, L, _ = projected.shape
        return projected.reshape(B, L, num_heads, self._head_dim).transpose(0, 2, 1, 3)
