"""The decoder, as in jaxlm/model/language_model.py, behind mlx-lm's model protocol."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.nn.utils import checkpoint
from mlx_lm.models.base import create_attention_mask, create_ssm_mask
from mlx_lm.models.cache import ArraysCache, KVCache

from jaxlm.common.architecture.config import ModelConfig
from mlxlm.model.layers import BitLinear, Embedding, FeedForward
from mlxlm.model.mixers import MLGRU, Attention, layer_bounds


class Block(nn.Module):
    """Pre-norm residual block: token mixer, then feed-forward."""

    def __init__(self, config: ModelConfig, token_mixer: str):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        if token_mixer == "attention":
            self.self_attn = Attention(config)
        else:
            self.mlgru = MLGRU(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = FeedForward(config)

    def __call__(
        self, x: mx.array, mask: Any, cache: Any, lower_bound: mx.array | None, begins: mx.array | None = None
    ) -> mx.array:
        normed = self.input_layernorm(x)
        if lower_bound is None:
            x = x + self.self_attn(normed, mask, cache)
        else:
            x = x + self.mlgru(normed, lower_bound, mask, cache, begins)
        return x + self.mlp(self.post_attention_layernorm(x))


class LowerBounds(nn.Module):
    """The learned lower bounds of all forget gates, `[mlgru layers, E]`."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.weight = mx.zeros((config.num_mlgru_layers, config.hidden_size))

    def __call__(self) -> mx.array:
        return layer_bounds(self.weight)


class LanguageModel(nn.Module):
    """Token ids `[B, L]` to next-token logits `[B, L, V]`, float32.

    With a cache the ids continue what the cache has seen. With `grad_checkpoint` nothing is kept of each block for
    the backward pass but its input.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.model_type = "jaxlm"
        self.embed_tokens = Embedding(config)
        self._mixers = config.token_mixer * config.num_repeats
        self.grad_checkpoint = False
        if config.num_mlgru_layers:
            self.lower_bounds = LowerBounds(config)
        self.layers = [Block(config, token_mixer) for token_mixer in self._mixers]
        self.norm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        if config.ternary_head:
            self.lm_head = BitLinear(config, config.hidden_size, config.vocab_size)
        elif not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def __call__(self, inputs: mx.array, cache: list[Any] | None = None) -> mx.array:
        return self.head(self.hidden(inputs, cache))

    def hidden(self, inputs: mx.array, cache: list[Any] | None = None, segment_ids: mx.array | None = None) -> mx.array:
        """What the last block gives, `[B, L, D]`. Positions of different segments `[B, L]` do not see each other."""
        x = self.embed_tokens(inputs)
        caches = cache or [None] * len(self.layers)
        self._check_caches(caches)
        bounds = iter(self.lower_bounds() if "lower_bounds" in self else [])
        begins = None if segment_ids is None else segment_begins(segment_ids)
        masks = self._cache_masks(x, caches) if segment_ids is None else {"attention": segment_mask(segment_ids)}
        for layer, mixer, layer_cache in zip(self.layers, self._mixers, caches, strict=True):
            block = checkpoint(layer) if self.grad_checkpoint and self.training else layer
            x = block(x, masks.get(mixer), layer_cache, next(bounds) if mixer == "mlgru" else None, begins)
        return x

    def head(self, x: mx.array) -> mx.array:
        """Logits of what the last block gave."""
        x = self.norm(x)
        logits = self.lm_head(x) if "lm_head" in self else self.embed_tokens.attend(x)
        return logits.astype(mx.float32)

    def head_modules(self) -> tuple[str, str]:
        """Names of the modules that `head` reads."""
        return "norm", "lm_head" if "lm_head" in self else "embed_tokens"

    def _cache_masks(self, x: mx.array, caches: list[Any]) -> dict[str, Any]:
        """By token mixer, what hides from a position the ones after it and what fills up a batch."""
        return {
            mixer: create(x, caches[self._mixers.index(mixer)])
            for mixer, create in (("attention", create_attention_mask), ("mlgru", create_ssm_mask))
            if mixer in self._mixers
        }

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Weights by parameter name, with latent ones quantized as in training; mlx-lm's loader calls it."""
        modules = dict(self.named_modules())
        held: dict[str, mx.array] = {}
        for name, weight in weights.items():
            held |= held_form(modules, name, weight)
        return held

    def make_cache(self) -> list[KVCache | ArraysCache]:
        """An empty cache, one entry a layer: keys and values, or one recurrent state."""
        return [KVCache() if mixer == "attention" else ArraysCache(1) for mixer in self._mixers]

    def _check_caches(self, caches: list[Any]) -> None:
        """Raise ValueError where a cache is another model's."""
        width = self.config.hidden_size
        for number, (cache, mixer) in enumerate(zip(caches, self._mixers, strict=False)):
            state = cache[0] if isinstance(cache, ArraysCache) else None
            wrong_kind = cache is not None and isinstance(cache, ArraysCache) != (mixer == "mlgru")
            if wrong_kind or (state is not None and state.shape[-1] != width):
                found = type(cache).__name__ if state is None else f"a state of width {state.shape[-1]}"
                raise ValueError(
                    f"cache: layer {number}: found {found}, expected what make_cache gives for {mixer} of width {width}"
                )
        if len(caches) != len(self._mixers):
            raise ValueError(
                f"cache: found {len(caches)} layers, expected {len(self._mixers)}; make one with make_cache"
            )


def segment_mask(segment_ids: mx.array) -> mx.array:
    """Which keys each query sees, `[B, 1, L, L]`: those of its segment `[B, L]` up to itself."""
    L = segment_ids.shape[1]
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    return (same & mx.tril(mx.ones((L, L), mx.bool_)))[:, None]


def segment_begins(segment_ids: mx.array) -> mx.array:
    """Where a segment other than the first begins, `[B, L]`."""
    return mx.concatenate(
        [mx.zeros_like(segment_ids[:, :1], dtype=mx.bool_), segment_ids[:, 1:] != segment_ids[:, :-1]], axis=1
    )


def held_form(modules: dict[str, nn.Module], name: str, weight: mx.array) -> dict[str, mx.array]:
    """A weight as its module holds it, by parameter name: a latent one is quantized as in training."""
    path, _, key = name.rpartition(".")
    module = modules.get(path)
    is_latent = key == "weight" and mx.issubdtype(weight.dtype, mx.floating)
    if is_latent and isinstance(module, BitLinear | Embedding):
        return {f"{path}.{part}": value for part, value in module.from_latent(weight).items()}
    return {name: weight}
