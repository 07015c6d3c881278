"""Text from a model: one compiled prefill and one compiled decoding step serve prompts of any length."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.common.sampling import PENALTY_WINDOW, Sampling, check_prompt, stop_set
from jaxlm.model.language_model import LanguageModel, init_cache
from jaxlm.ops.shapes import LastLogits
from jaxlm.ops.ternary_linear import Params, ternarize
from jaxlm.parallel.sharding import constrain

# Prompts and caches are padded to powers of two, so few programs serve all lengths.
SMALLEST_BUCKET = 64


class Decoding(flax.struct.PyTreeNode):
    """The state of a generation between two tokens, of B prompts together."""

    cache: Any  # of the model, see `init_cache`
    recent: (
        Any  # Int [B, PENALTY_WINDOW]: the latest tokens of each text, -1 where there are fewer; None without penalty
    )
    index: Any  # Int: number of tokens chosen so far


def sample(logits: LastLogits, sampling: Sampling, keys: jax.Array) -> jax.Array:
    """Return token ids `[B]` drawn from logits `[B, V]`, each row by its own key of `keys` `[B]`.

    Sources: top-p arXiv 1904.09751, min-p arXiv 2407.01082.
    """
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1)
    logits = logits / sampling.temperature
    if sampling.top_k:
        kth = jax.lax.top_k(logits, min(sampling.top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits < kth, -jnp.inf, logits)
    if sampling.top_p < 1:
        descending = jnp.sort(logits, axis=-1, descending=True)
        before = jnp.cumsum(jax.nn.softmax(descending), axis=-1) - jax.nn.softmax(descending)
        lowest = jnp.min(jnp.where(before < sampling.top_p, descending, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < lowest, -jnp.inf, logits)
    if sampling.min_p:
        likeliest = jnp.max(logits, axis=-1, keepdims=True)
        logits = jnp.where(logits < likeliest + jnp.log(sampling.min_p), -jnp.inf, logits)
    return jax.vmap(jax.random.categorical)(keys, logits)


def penalize(logits: LastLogits, recent: jax.Array, penalty: float) -> LastLogits:
    """Return logits `[B, V]` with those of recent tokens `[B, W]` made less likely (arXiv 1909.05858).

    A positive logit is divided by the penalty, a negative one multiplied. Entries of -1 stand for no token.
    """
    rows = jnp.arange(len(logits))[:, None]
    is_recent = jnp.zeros(logits.shape, bool).at[rows, recent].max(recent >= 0, mode="drop")
    return jnp.where(is_recent, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


@functools.partial(jax.jit, static_argnames=("model", "sampling"), donate_argnames=("state",))
def _step(
    model: LanguageModel,
    params: Params,
    tokens: jax.Array,
    positions: jax.Array,
    last: jax.Array,
    state: Decoding,
    seeds: jax.Array,
    allowed: jax.Array | None,
    sampling: Sampling,
) -> tuple[jax.Array, Decoding]:
    """Run tokens `[B, L]` at their positions, and choose the next one of each row, `[B]`.

    `last` `[B]` is the index of each row's last token; those after it are padding. The random choice of a row depends
    on its seed and the number of tokens chosen before, not on the rows next to it. `allowed` `[B, V]` is False for
    tokens that must not be chosen.
    """
    logits, cache = model.apply({"params": params}, tokens, positions, state.cache, last, method="decode")
    recent = state.recent
    if recent is not None:
        logits = penalize(logits, recent, sampling.repetition_penalty)
    if allowed is not None:
        logits = jnp.where(allowed, logits, -jnp.inf)
    keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), state.index))(seeds)
    chosen = constrain(sample(logits, sampling, keys), None)
    if recent is not None:
        recent = jnp.concatenate([recent[:, 1:], chosen[:, None].astype(recent.dtype)], axis=1)
    return chosen, Decoding(cache, recent, state.index + 1)


def generate_batch(
    model: LanguageModel,
    params: Params,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    seeds: Sequence[int] | None = None,
    allowed: Callable[[], np.ndarray] | None = None,
) -> Iterator[np.ndarray]:
    """Continue prompts of any lengths together. Yields one token of each, `[B]`, `sampling.max_tokens` times.

    Each prompt has a seed, by default that of `sampling`. Yields fewer where the context of all is full; tokens of a
    prompt after its context is full mean nothing. `allowed` is called before each token, after those before it were
    yielded, and returns bools `[B, V]`: False for tokens that must not come next. Raises ValueError where a prompt is
    empty, holds an id outside the vocabulary, or leaves no room in the model's context.
    """
    config = model.config
    for prompt in prompts:
        check_prompt(prompt, config.vocab_size, config.max_seq_len)
    lengths = np.array([len(prompt) for prompt in prompts])
    longest = int(lengths.max())
    num_steps = min(sampling.max_tokens, config.max_seq_len - int(lengths.min()))
    padded = min(_bucket(longest), config.max_seq_len)
    tokens = np.zeros((len(prompts), padded), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    params = ternarize(params, config)
    cache_length = min(_bucket(longest + num_steps), config.max_seq_len)
    state = Decoding(
        cache=init_cache(config, len(prompts), cache_length, model.dtype),
        recent=None if sampling.repetition_penalty == 1 else _recent_tokens(prompts),
        index=np.int32(0),
    )
    fixed = _compiled_settings(sampling)
    seed_of_each = np.array([sampling.seed] * len(prompts) if seeds is None else seeds, np.int32)
    positions = np.broadcast_to(np.arange(padded, dtype=np.int32), tokens.shape)
    masks, last = allowed or (lambda: None), (lengths - 1).astype(np.int32)
    chosen, state = _step(model, params, tokens, positions, last, state, seed_of_each, masks(), fixed)
    zeros = np.zeros(len(prompts), np.int32)
    for count in range(1, num_steps + 1):
        yield np.asarray(chosen)
        if count == num_steps:
            return
        # A row whose context is full writes over its last place.
        positions = np.minimum(lengths + count - 1, cache_length - 1).astype(np.int32)[:, None]
        chosen, state = _step(model, params, chosen[:, None], positions, zeros, state, seed_of_each, masks(), fixed)


def generate(
    model: LanguageModel,
    params: Params,
    prompt: Sequence[int],
    sampling: Sampling,
    stop: int | Collection[int] | None = None,
) -> Iterator[int]:
    """Continue one prompt up to any id of `stop`. Yields token ids as they come, without the one that stops."""
    stops = stop_set(stop)
    for tokens in generate_batch(model, params, [prompt], sampling):
        if int(tokens[0]) in stops:
            return
        yield int(tokens[0])


def _recent_tokens(prompts: Sequence[Sequence[int]]) -> np.ndarray:
    """Return the last PENALTY_WINDOW tokens of each prompt, -1 in front of shorter ones."""
    recent = np.full((len(prompts), PENALTY_WINDOW), -1, np.int32)
    for row, prompt in zip(recent, prompts, strict=True):
        latest = list(prompt)[-PENALTY_WINDOW:]
        row[len(row) - len(latest) :] = latest
    return recent


def _compiled_settings(sampling: Sampling) -> Sampling:
    """Return the settings that the compiled step depends on: for another length or seed nothing is compiled again."""
    kept = {field.name: getattr(sampling, field.name) for field in dataclasses.fields(Sampling)}
    return Sampling(**kept | {"max_tokens": 1, "seed": 0})


def _bucket(length: int) -> int:
    return max(SMALLEST_BUCKET, 1 << (length - 1).bit_length())
