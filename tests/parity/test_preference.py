"""One step of each preference in JAX and in MLX: loss within 1e-6, gradients within 1e-5."""

import dataclasses

import jax
import mlx.core as mx
import mlx.nn
import numpy as np
import pytest

from jaxlm.checkpoints.weights import artifact_params
from jaxlm.common.artifact.blank_artifact import save_blank_artifact
from jaxlm.common.formats.open_model import open_model
from jaxlm.common.objectives.preference import PREFERENCES
from jaxlm.model.language_model import LanguageModel
from jaxlm.training.objectives.preference import preference as jax_preference
from mlxlm.finetune.objectives.preference import preference as mlx_preference
from mlxlm.finetune.qat import latent_model
from mlxlm.model.trees import flat_arrays
from tests.conftest import VARIANTS
from tests.parity.test_training_step import as_mlx, by_attribute, distance


@pytest.fixture(autouse=True)
def uncompiled():
    """On a CPU, MLX compiles with g++: seconds a test."""
    mx.disable_compile()
    yield
    mx.enable_compile()


def batch(vocab_size):
    """Three pairs, of which the last is filling, with answers of several lengths."""
    rng = np.random.default_rng(0)
    shape = 3, 2, 12
    ends = rng.integers(6, 12, shape[:2])
    index = np.arange(12)
    mask = (index >= 4) & (index < ends[..., None])
    mask[2] = False
    return {
        "inputs": rng.integers(0, vocab_size, shape).astype(np.int32),
        "targets": rng.integers(0, vocab_size, shape).astype(np.int32),
        "positions": np.broadcast_to(index, shape).astype(np.int32),
        "loss_mask": mask,
        "pair": np.array([3, 1, 0], np.int32),
    }


@pytest.mark.parametrize("kind", PREFERENCES)
def test_a_step_is_that_of_jax(kind, tiny_config, tmp_path):
    config = dataclasses.replace(tiny_config, **VARIANTS["dense"], num_layers=1)
    save_blank_artifact(tmp_path / "artifact", config, seed=1)
    artifact = open_model(tmp_path / "artifact")
    config = artifact.config
    arrays = batch(config.vocab_size)
    reference = -np.random.default_rng(1).random((4, 2), np.float32) * 40

    model, params = LanguageModel(config), artifact_params(artifact)
    objective, extras = jax_preference(kind, 0.3, 3), {"reference": reference}

    def loss(params):
        sums = objective(model, params, arrays, extras)
        return sums.loss / sums.num_examples, sums

    (expected, sums), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    ours, theirs = latent_model(artifact), mlx_preference(kind, 0.3, 5)
    inputs = as_mlx(arrays | {"reference": reference[arrays["pair"]]})

    def mean(model, batch):
        found = theirs(model, batch)
        return found.loss / found.num_examples, *found

    (found, _, count, metrics), found_gradients = mlx.nn.value_and_grad(ours, mean)(ours, inputs)
    assert int(count) == int(sums.num_examples) == 2
    assert float(found) == pytest.approx(float(expected), rel=1e-6)
    assert metrics.keys() == sums.metrics.keys()
    for name, value in sums.metrics.items():
        assert float(metrics[name]) == pytest.approx(float(value), rel=1e-5), name
    assert distance(flat_arrays(found_gradients), by_attribute(config, gradients)) < 1e-5
