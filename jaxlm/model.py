"""The decoder: Block and LanguageModel. Parameters are named as Hugging Face names them."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.layers import BitLinear, Embedding, FeedForward, Linear, RMSNorm
from jaxlm.mixers import Attention, KVCache
from jaxlm.shapes import AttentionMask, Hidden, LastLogits, Logits, Positions, SegmentIds, Tokens
from jaxlm.spec.config import ModelConfig


class Block(nn.Module):
    """Pre-norm residual block: token mixer, then feed-forward."""

    config: ModelConfig

    def setup(self) -> None:
        self.input_layernorm = RMSNorm(self.config.norm_eps)
        self.self_attn = Attention(self.config)
        self.post_attention_layernorm = RMSNorm(self.config.norm_eps)
        self.mlp = FeedForward(self.config)

    def __call__(
        self, x: Hidden, cache: KVCache | None, positions: Positions, mask: AttentionMask | None
    ) -> tuple[Hidden, KVCache | None]:
        mixed, cache = self.self_attn(self.input_layernorm(x), positions, mask, cache)
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x)), cache


class LanguageModel(nn.Module):
    """Token ids `[B, L]` to next-token logits `[B, L, V]`, float32.

    `params` may hold latent or ternary matrices (see `ternarize`); the parameters of the blocks are stacked
    along a leading layer axis whether the layers run as a loop or, with `unroll_layers`, one after another.
    """

    config: ModelConfig
    dtype: Any = jnp.float32
    """Precision of activations; norms, softmax, scales and logits are float32."""
    unroll_layers: bool = False

    def setup(self) -> None:
        config = self.config
        self.embed_tokens = Embedding(config)
        self.layers = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast),  # pyright: ignore[reportArgumentType]
            length=config.num_layers,
            unroll=config.num_layers if self.unroll_layers else 1,
        )(config)
        self.norm = RMSNorm(config.norm_eps)
        if not config.tie_word_embeddings:
            head = BitLinear if config.ternary_head else Linear
            self.lm_head = head(config, config.vocab_size, config.initializer_range)

    def __call__(
        self, token_ids: Tokens, positions: Positions | None = None, segment_ids: SegmentIds | None = None
    ) -> Logits:
        """Logits of every position. Positions of different segments do not see each other."""
        table = self.embed_tokens()
        x = table[token_ids].astype(self.dtype)
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(token_ids.shape[1]), token_ids.shape)
        x, _ = self.layers(x, None, positions, _segment_mask(segment_ids))
        return self._logits(x, table)

    def decode(
        self, token_ids: Tokens, positions: Positions, cache: KVCache, last: jax.Array
    ) -> tuple[LastLogits, KVCache]:
        """Run tokens at given positions against a cache: logits `[B, V]` at index `last` `[B]`, new cache."""
        table = self.embed_tokens()
        x = table[token_ids].astype(self.dtype)
        mask = jnp.arange(cache.keys.shape[2])[None, None] <= positions[:, :, None]
        x, written = self.layers(x, cache, positions, mask)
        assert written is not None
        x = x[jnp.arange(x.shape[0]), last][:, None]
        return self._logits(x, table)[:, 0], written

    def _logits(self, x: Hidden, table: jax.Array) -> Logits:
        x = self.norm(x)
        if not self.config.tie_word_embeddings:
            return self.lm_head(x).astype(jnp.float32)
        return jnp.einsum("bld,vd->blv", x, table.astype(x.dtype), preferred_element_type=jnp.float32)


def _segment_mask(segment_ids: SegmentIds | None) -> AttentionMask | None:
    """Causal mask within segments; None stands for plain causal."""
    if segment_ids is None:
        return None
    length = segment_ids.shape[1]
    causal = jnp.tril(jnp.ones((length, length), bool))
    return causal[None] & (segment_ids[:, :, None] == segment_ids[:, None, :])


def init_params(config: ModelConfig, rng: jax.Array) -> dict[str, Any]:
    """Fresh float32 parameters; jit it to make them where they will live."""
    return dict(LanguageModel(config).init(rng, jnp.zeros((1, 2), jnp.int32))["params"])


def init_cache(config: ModelConfig, batch_size: int, length: int, dtype: Any = jnp.float32) -> KVCache:
    """An empty cache for `length` positions."""
    shape = (config.num_layers, batch_size, length, config.num_kv_heads, config.head_dim)
    return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
