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
from mlxlm.model.shapes import (
    AttentionMask,
    HeadInputs,
    HeadOutputs,
    Hidden,
    LayerBounds,
    Logits,
    LowerBound,
    SegmentIds,
    TokenMask,
    Tokens,
)


class Block(nn.Module):
    """Pre-norm residual block: token mixer, then feed-forward."""

    def __init__(self, config: ModelConfig, token_mixer: str):
        super().__init__()
        self._multiplier = config.residual_multiplier
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        if token_mixer == "attention":
            self.self_attn = Attention(config)
        else:
            self.mlgru = MLGRU(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = FeedForward(config)

    def __call__(
        self,
        x: Hidden,
        mask: Any,
        cache: Any,
        lower_bound: LowerBound | None,
        is_document_start: TokenMask | None = None,
    ) -> Hidden:
        """Return the block's output; `mask` is that of its token mixer, and only MLGRU has a lower bound."""
        normed = self.input_layernorm(x)
        if lower_bound is None:
            mixed = self.self_attn(normed, mask, cache)
        else:
            mixed = self.mlgru(normed, lower_bound, mask, cache, is_document_start)
        x = x + times(self._multiplier, mixed)
        return x + times(self._multiplier, self.mlp(self.post_attention_layernorm(x)))


def times(factor: float, x: mx.array) -> mx.array:
    """Return x times a factor of the config, or x itself where it is 1."""
    return x if factor == 1 else x * factor


class LowerBounds(nn.Module):
    """The learned lower bounds of all forget gates, `[mlgru layers, E]`."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.weight = mx.zeros((config.num_mlgru_layers, config.hidden_size))

    def __call__(self) -> LayerBounds:
        return layer_bounds(self.weight)


class LanguageModel(nn.Module):
    """The decoder: token ids `[B, L]` to next-token logits `[B, L, V]`, float32.

    With a cache the ids continue the tokens that the cache already holds. With `grad_checkpoint` training saves only
    the input of each block and recomputes the rest in the backward pass.
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

    def __call__(self, inputs: Tokens, cache: list[Any] | None = None) -> Logits:
        """Return the logits of every position. Raises ValueError if the cache belongs to another model."""
        return self.head(self.hidden(inputs, cache))

    def hidden(
        self,
        inputs: Tokens,
        cache: list[Any] | None = None,
        segment_ids: SegmentIds | None = None,
        block_inputs: list[Hidden] | None = None,
    ) -> Hidden:
        """Return the output of the last block, before the final norm; `block_inputs` receives the input of every block.

        Positions of different segments do not attend to each other. Raises ValueError if the cache belongs to another
        model.
        """
        x = times(self.config.embedding_multiplier, self.embed_tokens(inputs))
        caches = cache or [None] * len(self.layers)
        self._check_caches(caches)
        bounds = iter(self.lower_bounds() if "lower_bounds" in self else [])
        is_document_start = None if segment_ids is None else is_segment_start(segment_ids)
        masks = self._cache_masks(x, caches) if segment_ids is None else {"attention": segment_mask(segment_ids)}
        for layer, mixer, layer_cache in zip(self.layers, self._mixers, caches, strict=True):
            if block_inputs is not None:
                block_inputs.append(x)
            block = checkpoint(layer) if self.grad_checkpoint and self.training else layer
            x = block(x, masks.get(mixer), layer_cache, next(bounds) if mixer == "mlgru" else None, is_document_start)
        return x

    def projections(self, x: Hidden, layer: int) -> list[mx.array]:
        """Return the outputs `[B, L, O]` of q_proj, k_proj and v_proj of a layer for the input of its block."""
        block = self.layers[layer]
        normed, mixer = block.input_layernorm(x), block.self_attn
        return [project(normed) for project in (mixer.q_proj, mixer.k_proj, mixer.v_proj)]

    def head(self, x: HeadInputs) -> HeadOutputs:
        """Return the logits `[..., V]`, float32, of outputs `[..., D]` of the last block."""
        x = times(self.config.logit_multiplier, self.norm(x))
        logits = (self.lm_head(x) if "lm_head" in self else self.embed_tokens.attend(x)).astype(mx.float32)
        cap = self.config.logit_softcap
        return logits if cap is None else cap * mx.tanh(logits / cap)

    def head_modules(self) -> tuple[str, str]:
        """Return the names of the modules that `head` reads."""
        return "norm", "lm_head" if "lm_head" in self else "embed_tokens"

    def _cache_masks(self, x: mx.array, caches: list[Any]) -> dict[str, Any]:
        """Return mlx-lm's mask for each kind of token mixer: it hides later positions from attention, and padding.

        A single token of a single row sees all that its cache holds, so it has none.
        """
        if x.shape[:2] == (1, 1):
            return {}
        return {
            mixer: create(x, caches[self._mixers.index(mixer)])
            for mixer, create in (("attention", create_attention_mask), ("mlgru", create_ssm_mask))
            if mixer in self._mixers
        }

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Return weights by parameter name, with latent ones quantized as in training; mlx-lm's loader calls it."""
        modules = dict(self.named_modules())
        quantized: dict[str, mx.array] = {}
        for name, weight in weights.items():
            quantized |= quantized_form(modules, name, weight)
        return quantized

    def make_cache(self) -> list[KVCache | ArraysCache]:
        """Return an empty cache, one entry per layer: keys and values, or one recurrent state `[B, E]`."""
        return [KVCache() if mixer == "attention" else ArraysCache(1) for mixer in self._mixers]

    def _check_caches(self, caches: list[Any]) -> None:
        """Raise ValueError if the caches do not fit this model's layers."""
        width = self.config.hidden_size
        for number, (cache, mixer) in enumerate(zip(caches, self._mixers, strict=False)):
            state = cache[0] if isinstance(cache, ArraysCache) else None
            wrong_kind = cache is not None and isinstance(cache, ArraysCache) != (mixer == "mlgru")
            if wrong_kind or (state is not None and state.shape[-1] != width):
                found = type(cache).__name__ if state is None else f"a state of width {state.shape[-1]}"
                raise ValueError(
                    f"cache: layer {number}: found {found}, expected a cache for {mixer} of width {width}; make "
                    "one with make_cache of this model"
                )
        if len(caches) != len(self._mixers):
            raise ValueError(
                f"cache: found {len(caches)} layers, expected {len(self._mixers)}; make one with make_cache"
            )


def segment_mask(segment_ids: SegmentIds) -> AttentionMask:
    """Return the visible keys of each query: those of its segment, up to its own position."""
    L = segment_ids.shape[1]
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    return (same & mx.tril(mx.ones((L, L), mx.bool_)))[:, None]


def is_segment_start(segment_ids: SegmentIds) -> TokenMask:
    """Return True at the first position of every segment of a row but the row's first segment."""
    return mx.concatenate(
        [mx.zeros_like(segment_ids[:, :1], dtype=mx.bool_), segment_ids[:, 1:] != segment_ids[:, :-1]], axis=1
    )


def quantized_form(modules: dict[str, nn.Module], name: str, weight: mx.array) -> dict[str, mx.array]:
    """Return a weight in the form that its module stores, by parameter name: a latent one is quantized as in training.

    `modules` are those of the model, by path.
    """
    path, _, key = name.rpartition(".")
    module = modules.get(path)
    is_latent = key == "weight" and mx.issubdtype(weight.dtype, mx.floating)
    if is_latent and isinstance(module, BitLinear | Embedding):
        return {f"{path}.{part}": value for part, value in module.from_latent(weight).items()}
    return {name: weight}
