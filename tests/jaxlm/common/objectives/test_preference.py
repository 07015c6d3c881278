"""The losses of pairs against their formulas, in numpy, JAX and MLX."""

import jax.numpy as jnp
import mlx.core as mx
import numpy as np
import pytest

from jaxlm.common.objectives.preference import LARGEST_MEAN, PREFERENCES, pair_losses, pair_metrics

RNG = np.random.default_rng(0)
TOKENS = np.array([[3, 5], [1, 2], [8, 8]], np.int32)
LOG_PROBS = (-RNG.random((3, 2)) * 2 * TOKENS).astype(np.float32)
REFERENCE = (-RNG.random((3, 2)) * 2 * TOKENS).astype(np.float32)
BETA = 0.3


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def expected(kind):
    """Return losses and margins by the formulas as the papers write them, in float64."""
    w, l_ = LOG_PROBS.astype(np.float64).T
    if kind == "orpo":
        p_w, p_l = np.exp(w / TOKENS[:, 0]), np.exp(l_ / TOKENS[:, 1])
        ratio = (p_w / (1 - p_w)) / (p_l / (1 - p_l))
        return -np.log(p_w) - BETA * np.log(sigmoid(np.log(ratio))), np.log(ratio)
    margin = (w - REFERENCE[:, 0]) - (l_ - REFERENCE[:, 1])
    return -np.log(sigmoid(BETA * margin)) if kind == "dpo" else (margin - 1 / (2 * BETA)) ** 2, margin


@pytest.mark.parametrize("kind", PREFERENCES)
@pytest.mark.parametrize(("xp", "array"), [(np, np.asarray), (jnp, jnp.asarray), (mx, mx.array)])
def test_losses_are_those_of_the_formulas(kind, xp, array):
    reference = None if kind == "orpo" else array(REFERENCE)
    found = pair_losses(kind, array(LOG_PROBS), array(TOKENS), reference, BETA, xp)
    for ours, theirs in zip(found, expected(kind), strict=True):
        np.testing.assert_allclose(np.asarray(ours), theirs, rtol=1e-5, atol=1e-6)


def test_metrics_are_sums_over_the_pairs_that_are_real():
    margin_first = expected("dpo")[1][0]
    found = pair_losses("dpo", LOG_PROBS, TOKENS, REFERENCE, BETA, np)
    metrics = pair_metrics(found, LOG_PROBS, np.array([True, False, False]), BETA, np)
    np.testing.assert_allclose(metrics["margin"], margin_first, rtol=1e-5)
    np.testing.assert_allclose(metrics["reward_difference"], BETA * margin_first, rtol=1e-5)
    np.testing.assert_allclose([metrics["chosen_logprob"], metrics["rejected_logprob"]], LOG_PROBS[0], rtol=1e-6)
    assert metrics["accuracy"] == float(margin_first > 0)


def test_a_model_that_is_its_own_reference_prefers_neither():
    found = pair_losses("dpo", LOG_PROBS, TOKENS, LOG_PROBS, BETA, np)
    np.testing.assert_allclose(found.loss, np.log(2), rtol=1e-6)
    assert pair_metrics(found, LOG_PROBS, np.ones(3, bool), BETA, np)["accuracy"] == 1.5


def test_answers_that_are_certain_or_without_tokens_have_finite_losses():
    found = pair_losses("orpo", np.zeros((2, 2), np.float32), np.array([[2, 2], [0, 0]]), None, BETA, np)
    assert np.isfinite(found.loss).all() and found.margin.tolist() == [0, 0]
    sure = pair_losses("orpo", np.array([[0, -9]], np.float32), np.array([[3, 3]]), None, BETA, np)
    assert np.log(-1 / LARGEST_MEAN) < sure.margin[0] < 20
