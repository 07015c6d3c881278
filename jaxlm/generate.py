"""Text from a model: one compiled prefill, one compiled decoding step, any prompt length."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.common.sampling import Sampling, check_prompt
from jaxlm.model.language_model import LanguageModel, init_cache
from jaxlm.ops.ternary_linear import Params, ternarize
from jaxlm.parallel.sharding import constrain

# Prompts and caches are padded up to powers of two, so few programs serve all lengths.
SMALLEST_BUCKET = 64


def sample(logits: jax.Array, sampling: Sampling, key: jax.Array) -> jax.Array:
    """Token ids `[B]` drawn from logits `[B, V]` (top-p: arXiv 1904.09751; min-p: arXiv 2407.01082)."""
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
    return jax.random.categorical(key, logits)


@functools.partial(jax.jit, static_argnums=(0, 6), donate_argnums=4)
def _step(model: LanguageModel, params: Params, tokens, positions, cache, place, sampling: Sampling):
    """Run tokens, choose the next ones. The key depends on (seed, index of the token) alone.

    `place` is (index of each row's last token, seed, index of the token to choose).
    """
    last, seed, index = place
    logits, cache = model.apply({"params": params}, tokens, positions, cache, last, method="decode")
    key = jax.random.fold_in(jax.random.key(seed), index)
    return constrain(sample(logits, sampling, key), None), cache


def generate_batch(
    model: LanguageModel,
    params: Params,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    stop_id: int | None = None,
) -> Iterator[np.ndarray]:
    """Continue prompts of any lengths together; yields one token for each, `[B]`, until all have stopped.

    A prompt that has stopped yields `stop_id` on. Raises ValueError where a prompt is empty, holds an id
    outside the vocabulary, or leaves no room in the model's context.
    """
    config = model.config
    for prompt in prompts:
        check_prompt(prompt, config.vocab_size, config.max_seq_len)
    lengths = np.array([len(prompt) for prompt in prompts])
    longest = int(lengths.max())
    max_tokens = min(sampling.max_tokens, config.max_seq_len - longest)
    padded = min(_bucket(longest), config.max_seq_len)
    tokens = np.zeros((len(prompts), padded), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    params = ternarize(params, config)
    cache_length = min(_bucket(longest + max_tokens), config.max_seq_len)
    cache = init_cache(config, len(prompts), cache_length, model.dtype)
    positions = np.broadcast_to(np.arange(padded, dtype=np.int32), tokens.shape)
    last = (lengths - 1).astype(np.int32)
    fixed, seed = _compiled_settings(sampling), np.int32(sampling.seed)
    chosen, cache = _step(model, params, tokens, positions, cache, (last, seed, np.int32(0)), fixed)
    stopped = np.zeros(len(prompts), bool)
    zeros = np.zeros(len(prompts), np.int32)
    for index in range(1, max_tokens + 1):
        output = np.asarray(chosen)
        if stop_id is not None:
            output = np.where(stopped, stop_id, output)
            stopped |= output == stop_id
        yield output
        if stopped.all() or index == max_tokens:
            return
        positions = (lengths + index - 1).astype(np.int32)[:, None]
        place = (zeros, seed, np.int32(index))
        chosen, cache = _step(model, params, chosen[:, None], positions, cache, place, fixed)


def generate(
    model: LanguageModel,
    params: Params,
    prompt: Sequence[int],
    sampling: Sampling,
    stop_id: int | None = None,
) -> Iterator[int]:
    """Continue one prompt; yields token ids as they come, without the stop token."""
    for tokens in generate_batch(model, params, [prompt], sampling, stop_id):
        if stop_id is not None and tokens[0] == stop_id:
            return
        yield int(tokens[0])


def _compiled_settings(sampling: Sampling) -> Sampling:
    """The settings that the compiled step depends on: another length or seed is no reason to compile again."""
    kept = {field.name: getattr(sampling, field.name) for field in dataclasses.fields(Sampling)}
    return Sampling(**kept | {"max_tokens": 1, "seed": 0})


def _bucket(length: int) -> int:
    return max(SMALLEST_BUCKET, 1 << (length - 1).bit_length())
