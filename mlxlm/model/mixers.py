"""Token mixers, as in jaxlm/model/mixers.py."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.base import scaled_dot_product_attention

from jaxlm.common.architecture.config import ModelConfig
from mlxlm.model.layers import block_linear
from mlxlm.model.linear_recurrence import linear_recurrence


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


class MLGRU(nn.Module):
    """The token mixer of the MatMul-free language model: a gated linear recurrence, elementwise in float32.

    As in the authors' program, where it differs from the text of arXiv 2406.02528 (see jaxlm/model/mixers.py).
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        width = config.hidden_size
        self.i_proj = block_linear(config, width, width)
        self.f_proj = block_linear(config, width, width)
        self.g_proj = block_linear(config, width, width)
        self.g_norm = nn.RMSNorm(width, config.norm_eps)
        self.o_proj = block_linear(config, width, width)

    def __call__(
        self, x: mx.array, lower_bound: mx.array, mask: mx.array | None, cache: Any, begins: mx.array | None = None
    ) -> mx.array:
        forget = mx.sigmoid(self.f_proj(x).astype(mx.float32))
        forget = lower_bound + (1 - lower_bound) * forget
        update = nn.silu(self.i_proj(x).astype(mx.float32)) * (1 - forget)
        if begins is not None:  # the state begins anew where a document does
            forget = mx.where(begins[..., None], 0, forget)
        if mask is not None:  # what fills up a batch leaves no trace
            update, forget = mx.where(mask[..., None], update, 0), mx.where(mask[..., None], forget, 1)
        state = None if cache is None else cache[0]
        initial = mx.zeros_like(update[:, 0]) if state is None else state
        states = linear_recurrence(forget, update, initial)
        if cache is not None:
            cache[0] = states[:, -1]
            cache.advance(x.shape[1])
        mixed = self.g_norm(self.g_proj(x)).astype(mx.float32) * nn.silu(states)
        return self.o_proj(mixed.astype(x.dtype))


def layer_bounds(weight: mx.array) -> mx.array:
    """Lower bounds of the forget gates `[layers, E]`: a softmax over the layers, summed up to each, the first at 0."""
    shares = mx.softmax(weight.astype(mx.float32), axis=0)
    return mx.cumsum(shares, axis=0) - shares[:1]
