"""A dense model that is half quantized, with sub-norms half inserted, is the same in JAX and in MLX."""

import dataclasses

import jax
import jax.numpy as jnp
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import jaxlm.model.loss
import mlxlm.model.loss
from jaxlm.checkpoints.weights import artifact_params
from jaxlm.common.architecture.parameters import parameters
from jaxlm.common.artifact.blank_artifact import save_blank_artifact
from jaxlm.common.artifact.inserted_norms import with_sub_norms
from jaxlm.common.formats.open_model import open_model
from jaxlm.common.objectives.quantization_course import QuantizationCourse
from jaxlm.model.language_model import LanguageModel
from jaxlm.ops.mixed_linear import with_share
from jaxlm.ops.ternary_linear import quantize_params
from mlxlm.finetune.warm_start import QuantizationRamp, warm_start_model
from mlxlm.model.trees import flat_arrays
from tests.conftest import VARIANTS


@pytest.fixture(autouse=True)
def uncompiled():
    """On a CPU, MLX compiles with g++: seconds a test."""
    mx.disable_compile()
    yield
    mx.enable_compile()


def test_loss_and_gradients_are_equal(tiny_config, tmp_path):
    config = dataclasses.replace(tiny_config, **VARIANTS["dense"], num_layers=1)
    save_blank_artifact(tmp_path / "dense", config, seed=1)
    dense = open_model(tmp_path / "dense")
    model = warm_start_model(dense, insert_sub_norm=True)
    QuantizationRamp(model, QuantizationCourse(0, 2)).set_step(2)
    params = artifact_params(with_sub_norms(dense))

    def theirs(params, batch):
        weights = with_share(params, quantize_params(params, model.config), jnp.float32(0.5), new_norms=True)
        return jaxlm.model.loss.loss_sum(LanguageModel(model.config), weights, batch)[0]

    compiled = jax.jit(jax.value_and_grad(theirs))
    ours, differences = nn.value_and_grad(model, mlxlm.model.loss.loss_sum), []
    for seed in range(4):
        ids = np.random.default_rng(seed).integers(0, config.vocab_size, (2, 13)).astype(np.int32)
        rows = np.zeros((2, 12), np.int32)
        batch = {"inputs": ids[:, :-1], "targets": ids[:, 1:], "segment_ids": rows, "loss_mask": rows == 0}
        nats, gradients = compiled(params, batch | {"positions": rows + np.arange(12, dtype=np.int32)})
        (found, _), found_gradients = ours(model, {name: mx.array(array) for name, array in batch.items()})
        flat, expected = flatten_dict(gradients), {}
        for parameter in parameters(model.config):
            leaf = flat[parameter.path]
            expected[parameter.attribute] = np.asarray(leaf if parameter.layer is None else leaf[parameter.layer])
        found_gradients = flat_arrays(found_gradients)
        assert found_gradients.keys() == expected.keys()
        distance = max(
            np.linalg.norm(np.array(found_gradients[path]) - expected[path]) / np.linalg.norm(expected[path])
            for path in expected
        )
        differences.append((abs(found.item() / float(nats) - 1), distance))
    # A last bit may push an activation over a rounding border, but not in every batch; without that they agree.
    assert max(loss for loss, _ in differences) < 1e-3
    assert min(loss for loss, _ in differences) < 1e-6 and min(distance for _, distance in differences) < 1e-4
