"""The decoder, as in jaxlm/model.py, behind mlx-lm's model protocol."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.base import create_attention_mask
from mlx_lm.models.cache import KVCache

from jaxlm.spec.config import ModelConfig
from mlxlm.layers import BitLinear, Embedding, FeedForward
from mlxlm.mixers import Attention


class Block(nn.Module):
    """Pre-norm residual block: token mixer, then feed-forward."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = FeedForward(config)

    def __call__(self, x: mx.array, mask: Any, cache: Any) -> mx.array:
        x = x + self.self_attn(self.input_layernorm(x), mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class LanguageModel(nn.Module):
    """Token ids `[B, L]` to next-token logits `[B, L, V]`, float32.

    With a cache the ids continue what the cache has seen.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.model_type = "jaxlm"
        self.embed_tokens = Embedding(config)
        self.layers = [Block(config) for _ in range(config.num_layers)]
        self.norm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        if config.ternary_head:
            self.lm_head = BitLinear(config, config.hidden_size, config.vocab_size)
        elif not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def __call__(self, inputs: mx.array, cache: list[Any] | None = None) -> mx.array:
        x = self.embed_tokens(inputs)
        caches = cache or [None] * len(self.layers)
        mask = create_attention_mask(x, caches[0])
        for layer, layer_cache in zip(self.layers, caches, strict=True):
            x = layer(x, mask, layer_cache)
        x = self.norm(x)
        logits = self.lm_head(x) if "lm_head" in self else self.embed_tokens.attend(x)
        return logits.astype(mx.float32)

    def make_cache(self) -> list[KVCache]:
        """An empty cache, one entry a layer."""
        return [KVCache() for _ in self.layers]
