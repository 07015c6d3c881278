"""Answers depend on their own numbers alone, and sampler and trainer give tokens the same log-probabilities."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from jaxlm.model.language_model import LanguageModel, init_params
from jaxlm.ops.ternary_linear import ternarize
from jaxlm.rl.rollouts import Turn, make_batch
from jaxlm.rl.sampler import Sampler
from jaxlm.training.objectives.policy_gradient import token_logprobs
from tests.conftest import TINY

PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13], [5, 6, 7]]
NUMBERS = [(0, 0), (1, 0), (2, 0), (0, 1)]


def sampler_of(config, **changes):
    model = LanguageModel(config)
    settings = {"prompt_tokens": 5, "max_tokens": 6, "temperature": 0.7, "stop_ids": [2, 3], "seed": 4} | changes
    return model, Sampler(model, **settings)


@pytest.fixture(scope="module", params=["ternary", "mlgru"])
def sampled(request):
    config = TINY
    if request.param == "mlgru":
        config = dataclasses.replace(TINY, token_mixer=("mlgru", "attention"))
    model, sampler = sampler_of(config)
    weights = jax.jit(lambda: ternarize(init_params(config, jax.random.key(1)), config))()
    return model, sampler, weights, sampler.sample(weights, PROMPTS, 3, NUMBERS)


def test_the_importance_ratio_of_sampler_and_trainer_is_1(sampled):
    model, _, weights, samples = sampled
    turns = [Turn("", prompt, sample, "", 0.0, 0) for prompt, sample in zip(PROMPTS, samples, strict=True)]
    batch: Any = make_batch(turns, np.zeros(4, np.float32), 4, 10, "grpo")
    logprobs, entropy = jax.jit(lambda weights, batch: token_logprobs(model, weights, batch, 0.7))(weights, batch)
    mask = batch["loss_mask"]
    ratio = np.exp(np.asarray(logprobs) - batch["sampler_logprobs"])[mask]
    # The decoder attends to a cache and the trainer to a sequence: sums in another order, and float32 is rounded.
    np.testing.assert_allclose(ratio, 1, atol=1e-4)
    assert np.all(np.asarray(entropy)[mask] > 0)


def test_an_answer_does_not_depend_on_the_rows_next_to_it(sampled):
    _, sampler, weights, samples = sampled
    order = [2, 0, 3, 1]
    again = sampler.sample(weights, [PROMPTS[i] for i in order], 3, [NUMBERS[i] for i in order])
    assert [each.tokens for each in again] == [samples[i].tokens for i in order]
    assert samples[0].tokens != samples[3].tokens
    other = sampler.sample(weights, PROMPTS, 4, NUMBERS)
    assert [each.tokens for each in other] != [each.tokens for each in samples]


def test_answers_end_with_a_stop_token_or_are_cut(sampled):
    for sample in sampled[3]:
        assert len(sample.tokens) == len(sample.logprobs) <= 6
        assert not set(sample.tokens[:-1]) & {2, 3}
        assert len(sample.tokens) == 6 or sample.tokens[-1] in (2, 3)


def test_a_context_that_is_too_short_is_named():
    with pytest.raises(ValueError, match="max_tokens: found 60 after prompts of up to 5 tokens, expected at most 64"):
        sampler_of(TINY, max_tokens=60)
