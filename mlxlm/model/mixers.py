"""Token mixers, as in jaxlm/model/mixers.py: attention and MLGRU, which mix a position with the ones before it."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.base import scaled_dot_product_attention

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.rotary import rotary_attention_factor, rotary_frequencies
from mlxlm.model.layers import block_linear
from mlxlm.model.linear_recurrence import linear_recurrence
from mlxlm.model.shapes import Features, Heads, Hidden, LayerBounds, LowerBound, TokenMask


class Attention(nn.Module):
    """Grouped-query attention (arXiv 2305.13245) with rotary positions (arXiv 2104.09864).

    With `qk_norm` there is a norm on every query and key head, with sub-norms one before `o_proj`.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self._num_heads, self._num_kv_heads, self._head_dim = (
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
        )
        width = config.num_heads * config.head_dim
        kv_width = config.num_kv_heads * config.head_dim
        bias = config.attention_bias
        self.q_proj = block_linear(config, config.hidden_size, width, bias)
        self.k_proj = block_linear(config, config.hidden_size, kv_width, bias)
        self.v_proj = block_linear(config, config.hidden_size, kv_width, bias)
        self.o_proj = block_linear(config, width, config.hidden_size)
        if config.sub_norm:
            self.attn_sub_norm = nn.RMSNorm(width, config.norm_eps)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(config.head_dim, config.norm_eps)
            self.k_norm = nn.RMSNorm(config.head_dim, config.norm_eps)
        frequencies = rotary_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
        self._periods = mx.array((1 / frequencies).astype(np.float32))
        # YaRN's factor of queries and keys, applied to their products.
        self._scale = self._head_dim**-0.5 * rotary_attention_factor(config.rope_scaling) ** 2

    def __call__(self, x: Hidden, mask: Any, cache: Any) -> Hidden:
        """Return the mixed positions; `mask` is mlx-lm's: None, "causal" or booleans `[B, 1, L, S]`."""
        B, L, _ = x.shape
        queries = self._heads(self.q_proj(x), self._num_heads)
        keys = self._heads(self.k_proj(x), self._num_kv_heads)
        values = self._heads(self.v_proj(x), self._num_kv_heads)
        if "q_norm" in self:
            queries, keys = self.q_norm(queries), self.k_norm(keys)
        offset = 0 if cache is None else cache.offset
        queries, keys = self._rotary(queries, offset), self._rotary(keys, offset)
        if cache is not None:
            keys, values = cache.update_and_fetch(keys, values)
        attention_output = scaled_dot_product_attention(
            queries, keys, values, cache=cache, scale=self._scale, mask=mask
        )
        attention_output = attention_output.transpose(0, 2, 1, 3).reshape(B, L, -1)
        if "attn_sub_norm" in self:
            attention_output = self.attn_sub_norm(attention_output)
        return self.o_proj(attention_output)

    def _rotary(self, x: Heads, offset: Any) -> Heads:
        """Rotate x `[B, heads, L, H]`: pair i of a head turns once per 2 pi `_periods[i]` positions.

        `offset` is the position of the first token: one of all rows, or one per row `[B]`.
        """
        return mx.fast.rope(
            x, self._head_dim, traditional=False, base=None, scale=1.0, offset=offset, freqs=self._periods
        )

    def _heads(self, projected: Features, num_heads: int) -> Heads:
        B, L, _ = projected.shape
        return projected.reshape(B, L, num_heads, self._head_dim).transpose(0, 2, 1, 3)


class MLGRU(nn.Module):
    """The token mixer of the MatMul-free language model: a gated linear recurrence, elementwise in float32.

    It follows the authors' program where that differs from the text of arXiv 2406.02528 (see jaxlm/model/mixers.py).
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
        self,
        x: Hidden,
        lower_bound: LowerBound,
        is_valid_token: TokenMask | None,
        cache: Any,
        is_document_start: TokenMask | None = None,
    ) -> Hidden:
        """Return the mixed positions, and write the last state `[B, E]` to the cache if there is one.

        The state is reset where a document starts. Tokens that are not valid (padding) do not change it.
        """
        forget = mx.sigmoid(self.f_proj(x).astype(mx.float32))
        forget = lower_bound + (1 - lower_bound) * forget
        update = nn.silu(self.i_proj(x).astype(mx.float32)) * (1 - forget)
        if is_document_start is not None:
            forget = mx.where(is_document_start[..., None], 0, forget)
        if is_valid_token is not None:
            update = mx.where(is_valid_token[..., None], update, 0)
            forget = mx.where(is_valid_token[..., None], forget, 1)
        state = None if cache is None else cache[0]
        initial = mx.zeros_like(update[:, 0]) if state is None else state
        states = linear_recurrence(forget, update, initial)
        if cache is not None:
            cache[0] = states[:, -1]
            cache.advance(x.shape[1])
        gated = self.g_norm(self.g_proj(x)).astype(mx.float32) * nn.silu(states)
        return self.o_proj(gated.astype(x.dtype))


def layer_bounds(weight: LayerBounds) -> LayerBounds:
    """Return the lower bounds of the forget gates `[layers, E]`, from learned weights of the same shape.

    They are the cumulative sum over the layers of a softmax over the layers, shifted so that the first layer's is 0.
    """
    shares = mx.softmax(weight.astype(mx.float32), axis=0)
    return mx.cumsum(shares, axis=0) - shares[:1]
