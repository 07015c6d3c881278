"""The decoder: Block and LanguageModel. Parameters are named as Hugging Face names them."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.initial_weights import initial_std
from jaxlm.model.layers import BitLinear, Embedding, FeedForward, Linear, RMSNorm, logits_product
from jaxlm.model.mixers import MLGRU, Attention, Context, KVCache, RecurrentState, layer_bounds
from jaxlm.ops.attention import CUDNN_FORWARD, AttentionKernel
from jaxlm.ops.block_attention import MIXED
from jaxlm.ops.shapes import Hidden, LastLogits, Logits, Positions, SegmentIds, Tokens
from jaxlm.ops.ternary_linear import TERNARY_RESIDUALS
from jaxlm.parallel.sharding import constrain

# Of one layer, of a stack of them, or by place of a pattern of stacks; None while training.
Cache = KVCache | RecurrentState | dict[str, Any]


# What is worth keeping of what layers give. The gates of MLGRU are not: their products are small, their arrays large.
_PRODUCTS = ("q_proj", "k_proj", "v_proj", MIXED, "o_proj", "gate_proj", "up_proj", "down_proj")
# What ternary layers take of anything but a norm, in int8. A norm is computed again in any case, and its codes with it.
_CODES = ("o_proj_input", "down_proj_input")

Remat = Literal["none", "products", "ternary", "blocks"]
# What the backward pass finds kept of each block; it computes the rest again.
REMAT_POLICIES: dict[Remat, Any] = {
    "none": jax.checkpoint_policies.everything_saveable,
    "products": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.save_only_these_names(*_PRODUCTS, *_CODES),
        lambda primitive, *_, **__: primitive.name == CUDNN_FORWARD,
    ),
    "ternary": jax.checkpoint_policies.save_only_these_names(TERNARY_RESIDUALS),
    "blocks": jax.checkpoint_policies.nothing_saveable,
}


class Block(nn.Module):
    """Pre-norm residual block: token mixer, then feed-forward."""

    config: ModelConfig
    token_mixer: str

    def setup(self) -> None:
        self.input_layernorm = RMSNorm(self.config.norm_eps)
        if self.token_mixer == "attention":
            self.self_attn = Attention(self.config)
        else:
            self.mlgru = MLGRU(self.config)
        self.post_attention_layernorm = RMSNorm(self.config.norm_eps)
        self.mlp = FeedForward(self.config)

    def __call__(
        self, carried: tuple[Hidden, Any], layer: jax.Array | None, lower_bound: jax.Array | None, context: Context
    ) -> tuple[tuple[Hidden, Any], None]:
        """The next block's `carried`: hidden states, and the cache of all layers, None while training."""
        x, cache = carried
        normed = self.input_layernorm(x)
        if self.token_mixer == "attention":
            mixed, cache = self.self_attn(normed, context, cache, layer)
        else:
            assert lower_bound is not None
            mixed, cache = self.mlgru(normed, context, cache, layer, lower_bound)
        x = x + mixed
        x = x + self.mlp(self.post_attention_layernorm(x))
        return (constrain(x, "batch", None, None), cache), None


class PatternOfBlocks(nn.Module):
    """The blocks of one repeat of a pattern of token mixers."""

    config: ModelConfig
    block: type[Block]

    @nn.compact
    def __call__(
        self, carried: tuple[Hidden, Any], repeat: jax.Array | None, lower_bounds: jax.Array | None, context: Context
    ) -> tuple[tuple[Hidden, Any], None]:
        x, cache = carried
        written = {}
        recurrent = 0
        for place, token_mixer in enumerate(self.config.token_mixer):
            name, lower_bound = f"place_{place}", None
            if token_mixer == "mlgru":
                assert lower_bounds is not None
                lower_bound, recurrent = lower_bounds[recurrent], recurrent + 1
            block = self.block(self.config, token_mixer, name=name)
            (x, written[name]), _ = block((x, cache and cache[name]), repeat, lower_bound, context)
        return (x, cache and written), None


class LowerBounds(nn.Module):
    """The learned lower bounds of all forget gates, for the layers' loop: `[repeats, E]`, or `[repeats, places, E]`."""

    config: ModelConfig

    @nn.compact
    def __call__(self) -> jax.Array:
        config = self.config
        shape = (config.num_mlgru_layers, config.hidden_size)
        bounds = layer_bounds(self.param("weight", nn.initializers.zeros, shape))
        if len(config.token_mixer) == 1:
            return bounds
        return bounds.reshape(config.num_repeats, -1, config.hidden_size)


class LanguageModel(nn.Module):
    """Token ids `[B, L]` to next-token logits `[B, L, V]`, float32.

    `params` may hold latent or ternary matrices (see `ternarize`); the parameters of the blocks are stacked
    along a leading layer axis whether the layers run as a loop or, with `unroll_layers`, one after another.
    """

    config: ModelConfig
    dtype: Any = jnp.float32
    """Precision of activations; norms, softmax, scales and logits are float32."""
    unroll_layers: bool = False
    remat: Remat = "none"
    """What training keeps of the forward pass."""
    attention: AttentionKernel = "xla"
    """What computes the attention of whole sequences; see `jaxlm.ops.attention.choose_kernel`."""

    def setup(self) -> None:
        config = self.config
        self.embed_tokens = Embedding(config)
        if config.num_mlgru_layers:
            self.lower_bounds = LowerBounds(config)
        is_pattern = len(config.token_mixer) > 1
        block: Any = Block
        if self.remat != "none":
            # In a loop, forward and backward pass are programs of their own; side by side XLA would merge them again.
            block = nn.remat(Block, policy=REMAT_POLICIES[self.remat], prevent_cse=self.unroll_layers)
        repeated: Any = nn.scan(
            PatternOfBlocks if is_pattern else block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, 0, nn.broadcast),  # pyright: ignore[reportArgumentType]
            length=config.num_repeats,
            unroll=config.num_repeats if self.unroll_layers else 1,
        )
        self.layers = repeated(config, block) if is_pattern else repeated(config, config.token_mixer[0])
        self.norm = RMSNorm(config.norm_eps)
        if not config.tie_word_embeddings:
            head = BitLinear if config.ternary_head else Linear
            self.lm_head = head(config, config.vocab_size, initial_std(config, "lm_head"))

    def __call__(
        self, token_ids: Tokens, positions: Positions | None = None, segment_ids: SegmentIds | None = None
    ) -> Logits:
        """Logits of every position. Positions of different segments do not see each other."""
        return self.head(self.hidden(token_ids, positions, segment_ids))

    def hidden(
        self, token_ids: Tokens, positions: Positions | None = None, segment_ids: SegmentIds | None = None
    ) -> Hidden:
        """What the last block gives, `[B, L, D]`."""
        return self.blocks(*self.embed(token_ids, positions, segment_ids))

    def embed(
        self, token_ids: Tokens, positions: Positions | None = None, segment_ids: SegmentIds | None = None
    ) -> tuple[Hidden, jax.Array | None, Context]:
        """What `blocks` is given: embeddings `[B, L, D]`, the lower bounds of all layers, and the context."""
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(token_ids.shape[1]), token_ids.shape)
        begins = positions == 0
        if segment_ids is not None:
            begins |= jnp.diff(segment_ids, axis=1, prepend=segment_ids[:, :1]) != 0
        x = constrain(self._table()[token_ids].astype(self.dtype), "batch", None, None)
        return x, self._bounds(), Context(positions, begins, segment_ids, attention=self.attention)

    def blocks(self, x: Hidden, lower_bounds: jax.Array | None, context: Context) -> Hidden:
        """What the last block gives, `[B, L, D]`; reads the parameters of `layers` alone."""
        (x, _), _ = self.layers((x, None), None, lower_bounds, context)
        return x

    def head(self, x: Hidden) -> Logits:
        """Logits of what the last block gave; reads the parameters of `head_modules` alone."""
        x = self.norm(x)
        if not self.config.tie_word_embeddings:
            return self.lm_head(x).astype(jnp.float32)
        return logits_product(x, self._table())

    def head_modules(self) -> tuple[str, str]:
        """Names of the modules that `head` reads."""
        return "norm", "embed_tokens" if self.config.tie_word_embeddings else "lm_head"

    def has_float_head(self) -> bool:
        """Whether the matrix that `head` reads is multiplied as it is, not quantized."""
        config = self.config
        return config.embedding == "float" if config.tie_word_embeddings else not config.ternary_head

    def decode(
        self, token_ids: Tokens, positions: Positions, cache: Cache, last: jax.Array
    ) -> tuple[LastLogits, Cache]:
        """Run tokens at given positions against a cache: logits `[B, V]` at index `last` `[B]`, new cache.

        Tokens after `last` fill up: they leave no trace in a recurrent state, and attention never sees them again.
        Raises ValueError where the cache is that of another model.
        """
        _check_cache(self.config, token_ids.shape[0], cache)
        table = self.embed_tokens()
        x = table[token_ids].astype(self.dtype)
        keep = jnp.arange(token_ids.shape[1])[None] <= last[:, None]
        context = Context(positions, positions == 0, keep=keep)
        # Carried from layer to layer, and so written in place: what a loop reads and gives by layer is copied.
        (x, cache), _ = self.layers((x, cache), jnp.arange(self.config.num_repeats), self._bounds(), context)
        x = x[jnp.arange(x.shape[0]), last][:, None]
        return self.head(x)[:, 0], cache

    def _table(self) -> jax.Array:
        # Whole along `embed`: a row that is split over the devices of a batch would be gathered in a detour.
        return constrain(self.embed_tokens(), "vocab", None)

    def _bounds(self) -> jax.Array | None:
        return self.lower_bounds() if self.config.num_mlgru_layers else None


def init_params(config: ModelConfig, rng: jax.Array) -> dict[str, Any]:
    """Fresh float32 parameters; jit it to make them where they will live."""
    return dict(LanguageModel(config).init(rng, jnp.zeros((1, 2), jnp.int32))["params"])


def init_cache(config: ModelConfig, batch_size: int, length: int, dtype: Any = jnp.float32) -> Cache:
    """An empty cache: keys and values for `length` positions in attention, one state in recurrent layers."""
    caches = [_init_cache(config, mixer, batch_size, length, dtype) for mixer in config.token_mixer]
    return caches[0] if len(caches) == 1 else {f"place_{place}": cache for place, cache in enumerate(caches)}


def _init_cache(config: ModelConfig, token_mixer: str, batch_size: int, length: int, dtype: Any) -> Cache:
    if token_mixer == "mlgru":
        return RecurrentState(jnp.zeros((config.num_repeats, batch_size, config.hidden_size), jnp.float32))
    shape = (config.num_repeats, batch_size, config.num_kv_heads, length, config.head_dim)
    return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def _check_cache(config: ModelConfig, batch_size: int, cache: Cache) -> None:
    """Raise ValueError where a cache is another model's, or another batch's."""
    length = _cache_length(cache) or 0
    expected = jax.eval_shape(lambda: init_cache(config, batch_size, length))
    if _describe(cache) != _describe(expected):
        raise ValueError(
            f"cache: found {_describe(cache)}, expected {_describe(expected)}; make one with init_cache for this model"
        )


def _describe(cache: Cache) -> str:
    if isinstance(cache, dict):
        return ", ".join(f"{name} {_describe(each)}" for name, each in cache.items())
    array = cache.keys if isinstance(cache, KVCache) else cache.state
    return f"{type(cache).__name__} {list(array.shape)}"


def _cache_length(cache: Cache) -> int | None:
    """Positions that a model's cache has room for; None where it holds states only."""
    caches = cache.values() if isinstance(cache, dict) else [cache]
    return next((each.keys.shape[3] for each in caches if isinstance(each, KVCache)), None)
