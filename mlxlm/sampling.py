"""The choice of the next token from its distribution, with a random state of its own for every text."""

from collections.abc import Callable
from typing import TypeAlias

import mlx.core as mx
from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p, greedy_sampler

from jaxlm.common.sampling import Sampling

# Log-probabilities `[1, V]` -> a token `[1]`.
Sampler: TypeAlias = Callable[[mx.array], mx.array]


def make_sampler(sampling: Sampling, vocab_size: int) -> Sampler:
    """Return the sampler of one text. Its random choices depend on the seed and the number of tokens before alone.

    At temperature 0 it is the same function for all texts, so that a batch of them is one call.
    """
    return greedy_sampler if sampling.temperature == 0 else _SeededSampler(sampling, vocab_size)


class _SeededSampler:
    def __init__(self, sampling: Sampling, vocab_size: int):
        self._sampling, self._vocab_size = sampling, vocab_size
        self._key = mx.random.key(sampling.seed)

    def __call__(self, logprobs: mx.array) -> mx.array:
        sampling = self._sampling
        self._key, key = mx.random.split(self._key)
        if sampling.top_p < 1:
            logprobs = apply_top_p(logprobs, sampling.top_p)
        if sampling.min_p:
            logprobs = apply_min_p(logprobs, sampling.min_p)
        if 0 < sampling.top_k < self._vocab_size:
            logprobs = apply_top_k(logprobs, sampling.top_k)
        return mx.random.categorical(logprobs * (1 / sampling.temperature), key=key)
