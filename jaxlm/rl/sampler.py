"""Answers of a model to prompts, sampled in one compiled loop, with the log-probability of every token."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.common.sampling import check_prompt
from jaxlm.model.language_model import LanguageModel, init_cache
from jaxlm.ops.machine.cpu import onednn_options
from jaxlm.ops.ternary_linear import Params


@dataclass(frozen=True)
class Sample:
    """One answer. The last token is the one that ended it, unless the answer was cut."""

    tokens: list[int]
    logprobs: np.ndarray
    """Of each token under the distribution that it was drawn from, float32."""


class Sampler:
    """Samples answers by one program, for prompts of up to `prompt_tokens` and answers of up to `max_tokens`.

    The random choices of a row depend on its numbers (seed, step, prompt, sample) alone, not on the rows next to it.
    Raises ValueError where both together are longer than the model's context.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        prompt_tokens: int,
        max_tokens: int,
        temperature: float,
        stop_ids: Sequence[int],
        seed: int,
    ):
        longest = model.config.max_seq_len
        if prompt_tokens + max_tokens > longest:
            raise ValueError(
                f"max_tokens: found {max_tokens} after prompts of up to {prompt_tokens} tokens, expected at most "
                f"{longest} together, the context of the model"
            )
        self._model, self._stops, self._seed = model, np.array(sorted(stop_ids), np.int32), seed
        self.prompt_tokens, self.max_tokens = prompt_tokens, max_tokens
        self._program = jax.jit(
            functools.partial(_sample, model, max_tokens, temperature),
            compiler_options=onednn_options(jax.default_backend()),
        )

    def sample(
        self, params: Params, prompts: Sequence[Sequence[int]], step: int, numbers: Sequence[tuple[int, int]]
    ) -> list[Sample]:
        """Return an answer to each prompt, by ternary or float weights. `numbers` are (prompt, sample) of each row.

        Rows of another number compile another program. Raises ValueError where a prompt cannot be continued.
        """
        for prompt in prompts:
            check_prompt(prompt, self._model.config.vocab_size, self._model.config.max_seq_len)
        tokens = np.zeros((len(prompts), self.prompt_tokens), np.int32)
        for row, prompt in zip(tokens, prompts, strict=True):
            row[: len(prompt)] = prompt
        lengths = np.array([len(prompt) for prompt in prompts], np.int32)
        seeds = np.array([self._seed, step], np.int32)
        found = self._program(params, tokens, lengths, seeds, np.array(numbers, np.int32), self._stops)
        chosen, logprobs, counts = (np.asarray(each) for each in found)
        return [
            Sample(ids[:count].tolist(), logs[:count])
            for ids, logs, count in zip(chosen, logprobs, counts, strict=True)
        ]


def _sample(
    model: LanguageModel,
    max_tokens: int,
    temperature: float,
    params: Params,
    prompts: jax.Array,
    lengths: jax.Array,
    seeds: jax.Array,
    numbers: jax.Array,
    stops: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return tokens and log-probabilities `[B, max_tokens]` and the number of tokens of each row `[B]`.

    prompts are `[B, P]` with `lengths` `[B]`, seeds (seed, step), numbers `[B, 2]`, stops `[S]`.
    """
    B, P = prompts.shape
    keys = jax.vmap(functools.partial(_key, seeds))(numbers)

    def choose(logits: jax.Array, index: Any) -> tuple[jax.Array, jax.Array]:
        scaled = jax.nn.log_softmax(logits / temperature)
        of_index = jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)
        chosen = jax.vmap(jax.random.categorical)(of_index, scaled).astype(jnp.int32)
        return chosen, jnp.take_along_axis(scaled, chosen[:, None], axis=-1)[:, 0]

    def write(found: Any, index: Any, chosen: jax.Array, logprobs: jax.Array) -> Any:
        tokens, logs, counts, stopped = found
        tokens = tokens.at[:, index].set(chosen)
        logs = logs.at[:, index].set(logprobs)
        counts = counts + ~stopped
        return tokens, logs, counts, stopped | jnp.any(chosen[:, None] == stops[None], axis=-1)

    def is_unfinished(state: Any) -> jax.Array:
        index, _, _, (_, _, _, stopped) = state
        return (index < max_tokens) & ~jnp.all(stopped)

    def step(state: Any) -> Any:
        index, last, cache, found = state
        positions = (lengths + index - 1)[:, None]
        logits, cache = model.apply(
            {"params": params}, last[:, None], positions, cache, jnp.zeros(B, jnp.int32), method="decode"
        )
        chosen, logprobs = choose(logits, index)
        return index + 1, chosen, cache, write(found, index, chosen, logprobs)

    cache = init_cache(model.config, B, P + max_tokens, model.dtype)
    positions = jnp.broadcast_to(jnp.arange(P, dtype=jnp.int32), (B, P))
    logits, cache = model.apply({"params": params}, prompts, positions, cache, lengths - 1, method="decode")
    chosen, logprobs = choose(logits, 0)
    empty = (
        jnp.zeros((B, max_tokens), jnp.int32),
        jnp.zeros((B, max_tokens), jnp.float32),
        jnp.zeros(B, jnp.int32),
        jnp.zeros(B, bool),
    )
    state = (jnp.int32(1), chosen, cache, write(empty, 0, chosen, logprobs))
    _, _, _, (tokens, logs, counts, _) = jax.lax.while_loop(is_unfinished, step, state)
    return tokens, logs, counts


def _key(seeds: jax.Array, numbers: jax.Array) -> jax.Array:
    """Return the random key of a row: of (seed, step, prompt, sample)."""
    key = jax.random.key(seeds[0])
    for number in (seeds[1], numbers[0], numbers[1]):
        key = jax.random.fold_in(key, number)
    return key
