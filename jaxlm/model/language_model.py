"""The decoder: Block and LanguageModel. Parameters are named as Hugging Face names them."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.initial_weights import initial_std
from jaxlm.common.step_choices import AttentionKernel, Remat
from jaxlm.model.layers import BitLinear, Embedding, FeedForward, Linear, RMSNorm
from jaxlm.model.mixers import MLGRU, Attention, Context, KVCache, Projections, RecurrentState, layer_bounds
from jaxlm.ops.attention import CUDNN_FORWARD
from jaxlm.ops.logits import head_logits
from jaxlm.ops.shapes import Hidden, LastLogits, Logits, LowerBound, Positions, SegmentIds, Tokens
from jaxlm.ops.ternary_linear import TERNARY_RESIDUALS, TernaryWeight
from jaxlm.ops.tiled_attention import ATTENTION_LOG_SUMS, ATTENTION_OUTPUT
from jaxlm.parallel.sharding import constrain

# The cache of all layers: one stack, or one per position of a pattern of token mixers. None while training.
Cache = KVCache | RecurrentState | dict[str, Any]


# Outputs that are worth saving. Those of the gates of MLGRU are not: their products are small, their arrays large.
_LINEAR_OUTPUTS = (
    "q_proj",
    "k_proj",
    "v_proj",
    ATTENTION_OUTPUT,
    ATTENTION_LOG_SUMS,
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
)
# Int8 inputs that are worth saving: to recompute these would repeat attention, or the product of gate and up.
_INT8_INPUTS = ("o_proj_input", "down_proj_input")

# The activations of each block that are saved for the backward pass; the rest is recomputed.
REMAT_POLICIES: dict[Remat, Any] = {
    "none": jax.checkpoint_policies.everything_saveable,
    "products": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.save_only_these_names(*_LINEAR_OUTPUTS, *_INT8_INPUTS),
        lambda primitive, *_, **__: primitive.name == CUDNN_FORWARD,
    ),
    "ternary": jax.checkpoint_policies.save_only_these_names(TERNARY_RESIDUALS, ATTENTION_LOG_SUMS),
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
        self,
        x: Hidden,
        context: Context,
        cache: Any = None,
        layer: jax.Array | None = None,
        lower_bound: LowerBound | None = None,
    ) -> tuple[Hidden, Any]:
        """Return the hidden states `[B, L, D]` after the block, and the cache of all layers, None while training.

        `layer` is the index of the block in the cache; `lower_bound` `[E]` is the smallest value of each forget gate of
        MLGRU.
        """
        normed = self.input_layernorm(x)
        if self.token_mixer == "attention":
            mixed, cache = self.self_attn(normed, context, cache, layer)
        else:
            assert lower_bound is not None
            mixed, cache = self.mlgru(normed, context, cache, layer, lower_bound)
        x = x + _times(self.config.residual_multiplier, mixed)
        x = x + _times(self.config.residual_multiplier, self.mlp(self.post_attention_layernorm(x)))
        return constrain(x, "batch", "length", None), cache


class PatternOfBlocks(nn.Module):
    """The blocks of one repeat of a pattern of token mixers."""

    config: ModelConfig
    block: type[Block]

    @nn.compact
    def __call__(
        self,
        x: Hidden,
        context: Context,
        cache: Any = None,
        repeat: jax.Array | None = None,
        lower_bounds: jax.Array | None = None,
    ) -> tuple[Hidden, Any]:
        """Return the hidden states after the blocks, and their caches by position in the pattern."""
        caches = {} if cache is None else dict(cache)
        recurrent = 0
        for position, token_mixer in enumerate(self.config.token_mixer):
            name, lower_bound = f"place_{position}", None  # the name is that of the parameters in checkpoints
            if token_mixer == "mlgru":
                assert lower_bounds is not None
                lower_bound, recurrent = lower_bounds[recurrent], recurrent + 1
            block = self.block(self.config, token_mixer, name=name)
            x, written = block(x, context, caches.get(name), repeat, lower_bound)
            if name in caches:
                caches[name] = written
        return x, None if cache is None else caches


def _times(factor: float, x: Hidden) -> Hidden:
    return x if factor == 1 else x * factor


def _scanned(module: nn.Module, carried: tuple[Hidden, Any], layer: Any, lower_bound: Any, context: Context) -> Any:
    """Call a block by the convention of `nn.scan`: (carried, inputs per layer, constants) -> (carried, outputs)."""
    x, cache = carried
    return module(x, context, cache, layer, lower_bound), None  # pyright: ignore[reportCallIssue]


class LowerBounds(nn.Module):
    """The learned lower bounds of all forget gates: `[repeats, E]`, or `[repeats, MLGRU layers per repeat, E]`."""

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
    along a leading layer axis whether the layers run as one scan or, with `unroll_layers`, unrolled.
    """

    config: ModelConfig
    dtype: Any = jnp.float32
    """Precision of activations; norms, softmax, scales and logits are float32."""
    unroll_layers: bool = False
    remat: Remat = "none"
    """Gradient checkpointing: the activations that training saves."""
    attention: AttentionKernel = "xla"
    """Kernel for the attention of whole sequences; see `jaxlm.ops.attention.choose_kernel`."""
    backward_dtype: str | None = None
    """Precision that the operands of the gradients' products of ternary linears and of the head are rounded to while
    training, their sums in float32; None is that of the activations."""

    def setup(self) -> None:
        config = self.config
        self.embed_tokens = Embedding(config)
        if config.num_mlgru_layers:
            self.lower_bounds = LowerBounds(config)
        is_pattern = len(config.token_mixer) > 1
        block: Any = Block
        if self.remat != "none":
            # Without `prevent_cse`, XLA merges the recomputation with the forward pass and saves what remat drops. A
            # scan needs no such guard.
            block = nn.remat(Block, policy=REMAT_POLICIES[self.remat], prevent_cse=self.unroll_layers)
        self.layers = PatternOfBlocks(config, block) if is_pattern else block(config, config.token_mixer[0])
        self.norm = RMSNorm(config.norm_eps)
        if not config.tie_word_embeddings:
            head = BitLinear if config.ternary_head else Linear
            self.lm_head = head(config, config.vocab_size, initial_std(config, "lm_head"))

    def __call__(
        self, token_ids: Tokens, positions: Positions | None = None, segment_ids: SegmentIds | None = None
    ) -> Logits:
        """Return the logits of every position. Attention stays inside each segment."""
        return self.head(self.hidden(token_ids, positions, segment_ids))

    def hidden(
        self, token_ids: Tokens, positions: Positions | None = None, segment_ids: SegmentIds | None = None
    ) -> Hidden:
        """Return the hidden states `[B, L, D]` after the last block."""
        return self.blocks(*self.embed(token_ids, positions, segment_ids))

    def embed(
        self, token_ids: Tokens, positions: Positions | None = None, segment_ids: SegmentIds | None = None
    ) -> tuple[Hidden, jax.Array | None, Context]:
        """Return the arguments of `blocks`: embeddings `[B, L, D]`, the lower bounds of all layers, and the context."""
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(token_ids.shape[1]), token_ids.shape)
        is_document_start = positions == 0
        if segment_ids is not None:
            is_document_start |= jnp.diff(segment_ids, axis=1, prepend=segment_ids[:, :1]) != 0
        x = _times(self.config.embedding_multiplier, self._table()[token_ids].astype(self.dtype))
        x = constrain(x, "batch", "length", None)
        return x, self._bounds(), Context(positions, is_document_start, segment_ids, attention=self.attention)

    def blocks(self, x: Hidden, lower_bounds: jax.Array | None, context: Context) -> Hidden:
        """Return the hidden states `[B, L, D]` after the last block. Reads the parameters of `layers` only."""
        return self._run_layers(x, context, None, None, lower_bounds)[0]

    def _run_layers(
        self, x: Hidden, context: Context, cache: Any, layers: jax.Array | None, lower_bounds: jax.Array | None
    ) -> tuple[Hidden, Any]:
        """Run all blocks over the stacked parameters; `layers` and `lower_bounds` have an entry for each repeat."""
        repeats = self.config.num_repeats
        run = nn.scan(
            _scanned,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, 0, nn.broadcast),  # pyright: ignore[reportArgumentType]
            length=repeats,
            unroll=repeats if self.unroll_layers else 1,
        )
        return run(self.layers, (x, cache), layers, lower_bounds, context)[0]

    def head(self, x: Hidden) -> Logits:
        """Return the logits of the hidden states after the last block. Reads the parameters of `head_modules` only."""
        return head_logits(*self._head_operands(x), self.head_modules()[1], soft_cap=self.config.logit_softcap)

    def head_operands(
        self, token_ids: Tokens, positions: Positions | None = None, segment_ids: SegmentIds | None = None
    ) -> tuple[Hidden, jax.Array | TernaryWeight]:
        """Return the operands of `head_logits`: normed hidden states `[B, L, D]`, and the head's matrix `[V, D]`."""
        return self._head_operands(self.hidden(token_ids, positions, segment_ids))

    def operands_and_projections(
        self, token_ids: Tokens, positions: Positions | None, segment_ids: SegmentIds | None, layer: int
    ) -> tuple[tuple[Hidden, jax.Array | TernaryWeight], Projections]:
        """Return `head_operands`, and the outputs of the linear layers before the attention of a layer."""
        x, lower_bounds, context = self.embed(token_ids, positions, segment_ids)
        repeat, place = divmod(layer, len(self.config.token_mixer))
        B, L = token_ids.shape
        found: Any = empty_projections(self.config, B, L, self.dtype, repeat)
        name, is_pattern = f"place_{place}", len(self.config.token_mixer) > 1
        layers = jnp.arange(self.config.num_repeats)
        x, found = self._run_layers(x, context, {name: found} if is_pattern else found, layers, lower_bounds)
        return self._head_operands(x), found[name] if is_pattern else found

    def _head_operands(self, x: Hidden) -> tuple[Hidden, jax.Array | TernaryWeight]:
        x = _times(self.config.logit_multiplier, self.norm(x))
        if self.config.tie_word_embeddings:
            return x, self._table()
        operands: Any = self.lm_head.operands(x)
        return operands

    def head_modules(self) -> tuple[str, str]:
        """Return the names of the modules that `head` reads."""
        return "norm", "embed_tokens" if self.config.tie_word_embeddings else "lm_head"

    def decode(
        self, token_ids: Tokens, positions: Positions, cache: Cache, last: jax.Array
    ) -> tuple[LastLogits, Cache]:
        """Run tokens `[B, L]` on a cache. Returns logits `[B, V]` at index `last` `[B]`, and the cache.

        Tokens after `last` are padding: they do not change a recurrent state, and later queries do not see them. Raises
        ValueError where the cache belongs to another model.
        """
        _check_cache(self.config, token_ids.shape[0], cache)
        # Prompts are short: their sharding is left to XLA.
        x = _times(self.config.embedding_multiplier, self.embed_tokens()[token_ids].astype(self.dtype))
        is_valid_token = jnp.arange(token_ids.shape[1])[None] <= last[:, None]
        context = Context(positions, positions == 0, is_valid_token=is_valid_token)
        # The cache is carried from layer to layer, so XLA writes it in place; per-layer inputs and outputs are copied.
        x, cache = self._run_layers(x, context, cache, jnp.arange(self.config.num_repeats), self._bounds())
        x = x[jnp.arange(x.shape[0]), last][:, None]
        return self.head(x)[:, 0], cache

    def _table(self) -> jax.Array:
        # Not split along `embed`: XLA would all-gather split rows by a detour.
        return constrain(self.embed_tokens(), "vocab", None)

    def _bounds(self) -> jax.Array | None:
        return self.lower_bounds() if self.config.num_mlgru_layers else None


def init_params(config: ModelConfig, rng: jax.Array) -> dict[str, Any]:
    """Return fresh float32 parameters. Jit it to make them on the devices where they will live."""
    return dict(LanguageModel(config).init(rng, jnp.zeros((1, 2), jnp.int32))["params"])


def init_cache(config: ModelConfig, batch_size: int, length: int, dtype: Any = jnp.float32) -> Cache:
    """Return an empty cache: keys and values of `length` positions for attention, one state for recurrent layers."""
    caches = [_init_cache(config, mixer, batch_size, length, dtype) for mixer in config.token_mixer]
    return caches[0] if len(caches) == 1 else {f"place_{position}": cache for position, cache in enumerate(caches)}


def empty_projections(config: ModelConfig, batch_size: int, length: int, dtype: Any, layer: int) -> Projections:
    """Return the projections of one layer of a stack before they are computed."""
    heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
    queries, keys, values = (
        constrain(jnp.zeros((batch_size, length, number, config.head_dim), dtype), "batch", "length", None, None)
        for number in heads
    )
    return Projections(queries, keys, values, layer)


def _init_cache(config: ModelConfig, token_mixer: str, batch_size: int, length: int, dtype: Any) -> Cache:
    if token_mixer == "mlgru":
        return RecurrentState(jnp.zeros((config.num_repeats, batch_size, config.hidden_size), jnp.float32))
    shape = (config.num_repeats, batch_size, config.num_kv_heads, length, config.head_dim)
    return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def _check_cache(config: ModelConfig, batch_size: int, cache: Cache) -> None:
    """Raise ValueError where a cache belongs to another model or another batch."""
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
    """Return the number of positions in a cache; None where it holds states only."""
    caches = cache.values() if isinstance(cache, dict) else [cache]
    return next((each.keys.shape[3] for each in caches if isinstance(each, KVCache)), None)
