"""Token mixers, by which a position reads the earlier ones: attention and MLGRU."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.step_choices import AttentionKernel
from jaxlm.model.layers import RMSNorm, block_linear, rotary, shared_input
from jaxlm.ops.attention import cached_attention, causal_attention
from jaxlm.ops.linear_recurrence import linear_recurrence
from jaxlm.ops.shapes import Hidden, LowerBound, Positions
from jaxlm.ops.ternary_linear import QuantizedFeatures
from jaxlm.parallel.split_sequences import repeated_to_split, split_sequences, whole_sequences


class Context(flax.struct.PyTreeNode):
    """Facts about the tokens that every layer needs."""

    # Not typed more closely: jax also builds the node with placeholders in its leaves.
    positions: Any  # Int [B, L], from the start of the document
    is_document_start: Any  # Bool [B, L]: a recurrent state is reset to zero there
    segment_ids: Any = None  # Int [B, L]: attention stays inside its segment; None stands for one
    is_valid_token: Any = None  # Bool [B, L]: False is padding, which does not change a state; None: all are valid
    attention: AttentionKernel = flax.struct.field(pytree_node=False, default="xla")


class KVCache(flax.struct.PyTreeNode):
    """Keys and values of all layers by absolute position, `[layers, B, K, S, H]`.

    No length is stored: a query at position p reads slots 0..p, so slots that were not written are never visible.
    """

    # Not typed more closely: jax also builds the node with placeholders in its leaves.
    keys: Any
    values: Any

    def write(self, layer: jax.Array, positions: Positions, keys: jax.Array, values: jax.Array) -> "KVCache":
        """Return the cache with keys and values `[B, L, K, H]` of tokens at `positions` `[B, L]` in one layer."""
        index = (layer, jnp.arange(len(positions))[:, None], slice(None), positions)
        return KVCache(self.keys.at[index].set(keys), self.values.at[index].set(values))


class Projections(flax.struct.PyTreeNode):
    """The outputs of q_proj, k_proj and v_proj in one layer, `[B, L, heads, H]`; carried as a cache is, while training.

    Until that layer they are zeros.
    """

    queries: Any
    keys: Any
    values: Any
    layer: int = flax.struct.field(pytree_node=False)

    def write(self, layer: jax.Array, queries: jax.Array, keys: jax.Array, values: jax.Array) -> "Projections":
        """Return them with what a layer has projected, if it is the one."""
        new = Projections(queries, keys, values, self.layer)
        return jax.tree.map(lambda found, before: jnp.where(layer == self.layer, found, before), new, self)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions.

    With `qk_norm` there is a norm on every query and key head, with sub-norms one before `o_proj`.
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x: Hidden, context: Context, cache: KVCache | Projections | None, layer: jax.Array | None
    ) -> tuple[Hidden, KVCache | Projections | None]:
        config, positions = self.config, context.positions
        B, L, _ = x.shape
        shared = shared_input(config, x)
        queries = self._heads("q_proj", config.num_heads, shared)
        keys = self._heads("k_proj", config.num_kv_heads, shared)
        values = self._heads("v_proj", config.num_kv_heads, shared)
        if isinstance(cache, Projections):
            assert layer is not None
            cache = cache.write(layer, queries, keys, values)
        if config.qk_norm:
            queries = RMSNorm(config.norm_eps, name="q_norm")(queries)
            keys = RMSNorm(config.norm_eps, name="k_norm")(keys)
        queries, keys = rotary(queries, positions, config), rotary(keys, positions, config)
        if not isinstance(cache, KVCache):
            queries, keys, values = whole_sequences(queries, *repeated_to_split(keys, values))
            attention_output = causal_attention(queries, keys, values, context.segment_ids, context.attention)
            attention_output = split_sequences(attention_output)
        else:
            assert layer is not None
            cache = cache.write(layer, positions, keys, values)
            attention_output = cached_attention(queries, cache.keys[layer], cache.values[layer], positions)
        attention_output = attention_output.reshape(B, L, config.num_heads * config.head_dim)
        if config.sub_norm:
            attention_output = RMSNorm(config.norm_eps, name="attn_sub_norm")(attention_output)
        return block_linear(config, config.hidden_size, "o_proj")(attention_output), cache

    def _heads(self, name: str, num_heads: int, x: Hidden | QuantizedFeatures) -> jax.Array:
        projected = block_linear(self.config, num_heads * self.config.head_dim, name)(x)
        return projected.reshape(*projected.shape[:-1], num_heads, self.config.head_dim)


class RecurrentState(flax.struct.PyTreeNode):
    """The states of all layers after the last token, `[layers, B, E]` float32."""

    state: Any


class MLGRU(nn.Module):
    """The token mixer of the MatMul-free language model: a gated linear recurrence, elementwise in float32.

    As in the authors' program (ridgerchu/matmulfreellm), not as in the text of arXiv 2406.02528: the update is
    silu(i) (1 - f), the forget gate has a lower bound that grows with the layers, and the norm is on the gate's side:
    o = RMSNorm(W_g x) * silu(h). With i, f, g = W_i x, sigmoid(W_f x), W_g x and lower bound b:
    f' = b + (1 - b) f, h_t = f'_t h_{t-1} + silu(i_t) (1 - f'_t). The state is reset where a document starts.
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x: Hidden,
        context: Context,
        cache: RecurrentState | None,
        layer: jax.Array | None,
        lower_bound: LowerBound,
    ) -> tuple[Hidden, RecurrentState | None]:
        config = self.config
        width = config.hidden_size
        shared = shared_input(config, x)
        update = block_linear(config, width, "i_proj")(shared).astype(jnp.float32)
        forget = jax.nn.sigmoid(block_linear(config, width, "f_proj")(shared).astype(jnp.float32))
        forget = lower_bound[None, None] + (1 - lower_bound[None, None]) * forget
        update = nn.silu(update) * (1 - forget)
        forget = jnp.where(context.is_document_start[..., None], 0, forget)
        if context.is_valid_token is not None:
            update = jnp.where(context.is_valid_token[..., None], update, 0)
            forget = jnp.where(context.is_valid_token[..., None], forget, 1)
        if cache is None:
            forget, update = whole_sequences(forget, update)
            states = split_sequences(linear_recurrence(forget, update, jnp.zeros_like(update[:, 0])))
        else:
            states = linear_recurrence(forget, update, cache.state[layer])
            cache = RecurrentState(cache.state.at[layer].set(states[:, -1]))
        gate = RMSNorm(config.norm_eps, name="g_norm")(block_linear(config, width, "g_proj")(shared))
        gated = (gate.astype(jnp.float32) * nn.silu(states)).astype(x.dtype)
        return block_linear(config, width, "o_proj")(gated), cache


def layer_bounds(weight: jax.Array) -> jax.Array:
    """Return the lower bounds of the forget gates `[layers, E]`: a cumulative softmax over the layers, from 0."""
    shares = jax.nn.softmax(weight, axis=0)
    return jnp.cumsum(shares, axis=0) - shares[:1]
