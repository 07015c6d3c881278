"""Scores of tokens in JAX and MLX are those of the logits, and the same alone and in a batch."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import jaxlm.score
import mlxlm.score
from jaxlm.checkpoints.weights import artifact_params
from jaxlm.common.artifact.blank_artifact import save_blank_artifact
from jaxlm.common.formats.open_model import open_model
from jaxlm.model.language_model import LanguageModel
from jaxlm.ops.ternary_linear import ternarize
from mlxlm.load import load_model
from tests.conftest import VARIANTS

ROWS = [np.random.default_rng(seed).integers(0, 300, length).tolist() for seed, length in enumerate((40, 7, 65, 3))]
CONTEXTS = [39, 1, 20, 3]


@pytest.mark.parametrize("variant", ["ternary", "dense", "hybrid", "ternary_head"])
def test_they_are_those_of_the_logits_in_both_frameworks(tiny_config, tmp_path, variant, monkeypatch):
    monkeypatch.setattr(jaxlm.score, "LARGEST_CHUNK_BYTES", 1)
    monkeypatch.setattr(mlxlm.score, "LARGEST_CHUNK_BYTES", 1)
    layers = 3 if variant == "hybrid" else 1
    config = dataclasses.replace(tiny_config, **VARIANTS[variant] | {"num_layers": layers, "max_seq_len": 65})
    save_blank_artifact(tmp_path / "model", config, seed=1)
    params = artifact_params(open_model(tmp_path / "model"))
    model = LanguageModel(config)
    found = jaxlm.score.score(model, params, ROWS, CONTEXTS, top=3)
    theirs = mlxlm.score.score(load_model(tmp_path / "model")[0], ROWS, CONTEXTS, top=3)
    for row, context, ours, mlx in zip(ROWS, CONTEXTS, found, theirs, strict=True):
        logits = np.asarray(model.apply({"params": ternarize(params, config)}, np.array([row])))[0].astype(np.float64)
        logprobs = (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))[context - 1 :]
        targets = row[context:]
        assert ours.top_ids.shape == ours.top_logprobs.shape == (len(targets) + 1, 3)
        # A last bit may push an activation of a ternary model over a rounding border.
        for scores, tolerance in ((ours, 1e-5), (mlx, 1e-5 if variant == "dense" else 1e-3)):
            expected = logprobs[np.arange(len(targets)), targets]
            np.testing.assert_allclose(scores.logprobs, expected, atol=tolerance)
            np.testing.assert_allclose(scores.top_logprobs, np.sort(logprobs, axis=1)[:, :-4:-1], atol=tolerance)
            np.testing.assert_array_equal(scores.is_greedy, logprobs[:-1].argmax(axis=1) == targets)
        np.testing.assert_array_equal(ours.top_ids, mlx.top_ids)
    apart = np.concatenate([ours.logprobs - mlx.logprobs for ours, mlx in zip(found, theirs, strict=True)])
    assert np.quantile(np.abs(apart), 0.9) < 1e-5  # where no activation crosses a border only the last bits differ
    alone = jaxlm.score.score(model, params, ROWS[2:3], CONTEXTS[2:3])[0]
    np.testing.assert_allclose(alone.logprobs, found[2].logprobs, atol=1e-6)
    assert alone.top_ids.shape == (45, 0)


@pytest.mark.parametrize("variant", ["ternary", "dense", "mlgru"])
def test_in_bfloat16_they_are_float32_and_near_those_of_float32(tiny_config, tmp_path, variant):
    config = dataclasses.replace(tiny_config, **VARIANTS[variant] | {"num_layers": 2, "max_seq_len": 65})
    save_blank_artifact(tmp_path / "model", config, seed=1)
    params = artifact_params(open_model(tmp_path / "model"))
    exact = jaxlm.score.score(LanguageModel(config), params, ROWS, [1] * 4)
    rounded = jaxlm.score.score(LanguageModel(config, jnp.bfloat16), params, ROWS, [1] * 4)
    assert all(scores.logprobs.dtype == np.float32 for scores in rounded)
    apart = np.concatenate([ours.logprobs - theirs.logprobs for ours, theirs in zip(exact, rounded, strict=True)])
    assert 1e-5 < np.abs(apart).max() < 0.15 and np.abs(apart).mean() < 0.02
    assert abs(apart.mean()) < 5e-3  # no side is preferred, so a mean loss is nearer than its tokens
