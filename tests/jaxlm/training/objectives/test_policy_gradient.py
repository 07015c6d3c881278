"""The policy gradient, against its definition in numpy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.model.language_model import LanguageModel, init_params
from jaxlm.ops.ternary_linear import ternarize
from jaxlm.training.objectives import policy_gradient as module
from jaxlm.training.objectives.next_token import next_token
from jaxlm.training.objectives.policy_gradient import policy_gradient
from tests.conftest import TINY

MODEL = LanguageModel(TINY)


@pytest.fixture(scope="module")
def setup():
    weights, reference = (
        jax.jit(lambda seed=seed: ternarize(init_params(TINY, jax.random.key(seed)), TINY))() for seed in (0, 1)
    )
    rng = np.random.default_rng(0)
    batch: dict[str, Any] = {name: rng.integers(4, 300, (4, 6)).astype(np.int32) for name in ("inputs", "targets")}
    batch["positions"] = np.broadcast_to(np.arange(6, dtype=np.int32), (4, 6))
    batch["loss_mask"] = rng.random((4, 6)) < 0.6
    batch["advantages"] = rng.normal(size=(4, 6)).astype(np.float32)
    batch["sampler_logprobs"] = np.zeros((4, 6), np.float32)
    return weights, reference, batch


def log_softmax(weights, batch, temperature):
    logits = np.asarray(MODEL.apply({"params": weights}, batch["inputs"], batch["positions"]), np.float64) / temperature
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def test_loss_entropy_and_kl_are_as_defined(setup, monkeypatch):
    weights, reference, batch = setup
    monkeypatch.setattr(module, "LARGEST_CHUNK_BYTES", 4 * 6 * 300 * 2)  # two rows at a time
    found = policy_gradient(temperature=0.5, kl_weight=0.3)(MODEL, weights, batch, reference)  # pyright: ignore
    logs, reference_logs = (log_softmax(each, batch, 0.5) for each in (weights, reference))
    mask, targets = batch["loss_mask"], batch["targets"][..., None]
    ours, theirs = (np.take_along_axis(each, targets, -1)[..., 0][mask] for each in (logs, reference_logs))
    kl = np.exp(theirs - ours) - (theirs - ours) - 1
    assert int(found.num_examples) == mask.sum()
    np.testing.assert_allclose(found.loss, (-batch["advantages"][mask] * ours + 0.3 * kl).sum(), rtol=1e-4)
    np.testing.assert_allclose(found.metrics["kl"], kl.sum(), rtol=1e-4)
    np.testing.assert_allclose(found.metrics["entropy"], -(np.exp(logs) * logs).sum(-1)[mask].sum(), rtol=1e-4)
    np.testing.assert_allclose(found.metrics["ratio_error"], np.abs(np.exp(ours) - 1).sum(), rtol=1e-4)


def test_with_advantages_of_1_it_is_the_loss_of_the_next_token(setup):
    weights, _, batch = setup
    ones = batch | {"advantages": np.ones((4, 6), np.float32)}
    ours, text = policy_gradient(), next_token()
    found, expected = (
        jax.jit(jax.grad(lambda weights, sums=sums: sums(MODEL, weights, ones, None).loss, allow_int=True))(weights)
        for sums in (ours, text)
    )
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        if jnp.issubdtype(one.dtype, jnp.floating):
            np.testing.assert_allclose(one, other, atol=2e-5)


def test_a_batch_without_a_token_has_no_gradient(setup):
    weights, _, batch = setup
    blank = batch | {"loss_mask": np.zeros((4, 6), bool)}
    found = policy_gradient()(MODEL, weights, blank, None)  # pyright: ignore
    assert float(found.loss) == 0 and int(found.num_examples) == 1
