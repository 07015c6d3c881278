import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.common.sampling import LARGEST_TEMPERATURE, PENALTY_WINDOW, SMALLEST_TEMPERATURE, SMALLEST_TOP_P, Sampling
from jaxlm.generate import _recent_tokens, _step, generate, generate_batch, penalize, sample
from jaxlm.model.language_model import LanguageModel, init_params


@pytest.fixture
def model_and_params(tiny_config):
    return LanguageModel(tiny_config), jax.jit(init_params, static_argnums=0)(tiny_config, jax.random.key(0))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 3e-2), ("bfloat16", 6e-2), ("float16", 3e-2)])
def test_greedy_text_is_that_of_the_uncached_pass(model_and_params, dtype, tolerance):
    model, params = model_and_params
    model = model.clone(dtype=jnp.dtype(dtype))
    prompt = [1, 17, 250]
    found = list(generate(model, params, prompt, Sampling(max_tokens=12)))
    apply = jax.jit(lambda ids: model.apply({"params": params}, ids))
    logits = np.asarray(apply(np.array([prompt + found])))[0]
    for i, token in enumerate(found):
        row = logits[len(prompt) + i - 1]
        assert row.max() - row[token] < tolerance  # the likeliest, but for rounding flips


def test_prompts_of_any_lengths_together_equal_each_alone(model_and_params):
    model, params = model_and_params
    prompts = [[1, 5], [1, 9, 33, 7, 8, 120], [4]]
    together = np.stack(list(generate_batch(model, params, prompts, Sampling(max_tokens=8))))
    for column, prompt in zip(together.T, prompts, strict=True):
        assert column.tolist() == list(generate(model, params, prompt, Sampling(max_tokens=8)))


def test_text_stops_at_the_stop_token_and_at_the_end_of_the_context(model_and_params):
    model, params = model_and_params
    whole = list(generate(model, params, [1, 5], Sampling(max_tokens=10)))
    stop = whole[4]
    assert list(generate(model, params, [1, 5], Sampling(max_tokens=10), stop)) == whole[: whole.index(stop)]
    assert len(list(generate(model, params, [1] * 60, Sampling(max_tokens=100)))) == 4


def test_a_seed_gives_the_same_text_and_another_seed_another(model_and_params):
    model, params = model_and_params

    def text(seed):
        return list(generate(model, params, [1], Sampling(max_tokens=12, temperature=2.0, seed=seed)))

    assert text(0) == text(0) != text(1)


def test_another_seed_length_or_prompt_compiles_nothing_new(model_and_params):
    model, params = model_and_params
    list(generate(model, params, [1, 5], Sampling(max_tokens=3, temperature=1.0)))
    compiled = _step._cache_size()
    list(generate(model, params, [1, 5, 9, 7], Sampling(max_tokens=5, temperature=1.0, seed=77)))
    assert _step._cache_size() == compiled


LOGITS = jnp.log(jnp.array([[0.5, 0.25, 0.15, 0.1]]))


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({}, {0, 1, 2, 3}),
        ({"top_k": 2}, {0, 1}),
        ({"top_k": 100}, {0, 1, 2, 3}),
        ({"top_p": 0.7}, {0, 1}),
        ({"top_p": 0.01}, {0}),
        ({"min_p": 0.25}, {0, 1, 2}),
        ({"temperature": 0.0}, {0}),
        ({"temperature": SMALLEST_TEMPERATURE}, {0}),
        ({"temperature": LARGEST_TEMPERATURE, "top_k": 2}, {0, 1}),
        ({"top_p": SMALLEST_TOP_P}, {0}),
    ],
)
def test_sampling_draws_from_what_is_allowed_and_from_all_of_it(settings, allowed):
    sampling = Sampling(**{"temperature": 1.0} | settings)
    draw = jax.jit(functools.partial(sample, LOGITS, sampling))
    drawn = {int(draw(key[None])[0]) for key in jax.random.split(jax.random.key(0), 200)}
    assert drawn == allowed


def test_frequencies_follow_the_temperature():
    draw = jax.jit(functools.partial(sample, jnp.tile(LOGITS, (4000, 1)), Sampling(temperature=0.5)))
    drawn = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))
    expected = np.array([0.5, 0.25, 0.15, 0.1]) ** 2
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 4000, expected / expected.sum(), atol=0.03)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "found no token"),
        ([300], r"outside 0\.\.299"),
        ([1] * 64, "found 64 tokens, expected fewer than the model"),
    ],
)
def test_prompts_that_cannot_be_continued_are_refused(model_and_params, prompt, message):
    with pytest.raises(ValueError, match=message):
        list(generate(*model_and_params, prompt, Sampling()))


def test_a_repetition_penalty_is_that_of_mlx_lm(model_and_params):
    import mlx.core as mx
    from mlx_lm.sample_utils import make_repetition_penalty

    rng = np.random.default_rng(0)
    logits = rng.standard_normal((2, 300), np.float32)
    prompts = [[1, 5, 5, 299], rng.integers(0, 300, 100).tolist()]
    found = np.asarray(penalize(jnp.asarray(logits), jnp.asarray(_recent_tokens(prompts)), 1.3))
    for row, prompt, before in zip(found, prompts, logits, strict=True):
        expected = make_repetition_penalty(1.3, PENALTY_WINDOW)(mx.array(prompt), mx.array(before[None]))
        np.testing.assert_allclose(row, np.array(expected)[0], rtol=1e-6)


def test_a_repetition_penalty_ends_a_loop(model_and_params):
    model, params = model_and_params
    plain = list(generate(model, params, [1, 5], Sampling(max_tokens=40)))
    penalized = list(generate(model, params, [1, 5], Sampling(max_tokens=40, repetition_penalty=5.0)))
    assert len(set(penalized)) > len(set(plain))


def test_a_text_stops_at_any_of_several_ids(model_and_params):
    model, params = model_and_params
    whole = list(generate(model, params, [1, 5], Sampling(max_tokens=10)))
    first = min(whole.index(whole[3]), whole.index(whole[6]))
    assert list(generate(model, params, [1, 5], Sampling(max_tokens=10), (whole[6], whole[3]))) == whole[:first]
