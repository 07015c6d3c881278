"""A dense model on its way to a ternary one: what it is at both ends, and when."""

import dataclasses

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from jaxlm.common.artifact.blank_artifact import save_blank_artifact
from jaxlm.common.artifact.inserted_norms import with_sub_norms
from jaxlm.common.formats.open_model import open_model
from jaxlm.common.objectives.quantization_course import QuantizationCourse
from mlxlm.finetune.qat import latent_model
from mlxlm.finetune.warm_start import QuantizationRamp, RampedBitLinear, warm_start_model
from mlxlm.model.loss import loss_sum
from mlxlm.model.trees import flat_arrays
from tests.conftest import VARIANTS

SHAPE = {"num_layers": 1, "scale_dtype": "float32", "attention_bias": True, "qk_norm": True}


@pytest.fixture
def dense(tiny_config, tmp_path):
    config = dataclasses.replace(tiny_config, **VARIANTS["dense"] | SHAPE)
    save_blank_artifact(tmp_path / "dense", config, seed=1)
    return open_model(tmp_path / "dense")


def loss_and_gradients(model):
    ids = mx.random.randint(0, 300, (2, 9), key=mx.random.key(0))
    rows = mx.zeros((2, 8), mx.int32)
    batch = {"inputs": ids[:, :-1], "targets": ids[:, 1:], "segment_ids": rows, "loss_mask": rows == 0}
    (nats, _), gradients = nn.value_and_grad(model, loss_sum)(model, batch)
    return {"nats": np.array(nats)} | {path: np.array(array) for path, array in flat_arrays(gradients).items()}


def test_it_begins_as_the_dense_model_and_ends_as_the_ternary_one(dense):
    model = warm_start_model(dense)
    assert model.config == dataclasses.replace(dense.config, linear="ternary", scale_dtype="bfloat16")
    ternary = latent_model(dataclasses.replace(dense, config=model.config))
    ramp = QuantizationRamp(model, QuantizationCourse(0, 4))
    found = {}
    for step in (1, 4, 5, 1):
        ramp.set_step(step)
        found[step] = loss_and_gradients(model)
    for step, expected in ((1, latent_model(dense)), (5, ternary)):
        expected = loss_and_gradients(expected)
        assert found[step].keys() == expected.keys()
        for path, array in expected.items():
            np.testing.assert_array_equal(found[step][path], array, path)
    assert found[4]["nats"] not in (found[1]["nats"], found[5]["nats"])


def test_between_the_ends_value_and_gradients_are_those_of_the_mixed_factors(tiny_config):
    x, weight, dy = (
        mx.random.normal(shape, key=mx.random.key(seed)) for seed, shape in enumerate([(3, 8), (4, 8), (3, 4)])
    )
    layer = RampedBitLinear(tiny_config, 8, 4)
    layer.set_lambda(0.25)

    def product(x, weight):
        layer.weight = weight
        return layer(x)

    (y,), (dx, dweight) = mx.vjp(product, [x, weight], [dy])
    scale = np.abs(np.array(x)).max(axis=1, keepdims=True) / 127
    mixed_x = 0.75 * np.array(x) + 0.25 * np.round(np.array(x) / scale) * scale
    mean = np.abs(np.array(weight)).mean()
    mixed_weight = 0.75 * np.array(weight) + 0.25 * np.clip(np.round(np.array(weight) / mean), -1, 1) * mean
    # The scale of the weight is a bfloat16 number.
    np.testing.assert_allclose(y, mixed_x @ mixed_weight.T, atol=2e-2)
    np.testing.assert_allclose(dx, np.array(dy) @ mixed_weight, atol=2e-2)
    np.testing.assert_allclose(dweight, np.array(dy).T @ mixed_x, atol=1e-5)


def test_lambda_rises_from_the_first_step_to_the_one_after_the_ramp(dense):
    ramp = QuantizationRamp(warm_start_model(dense), QuantizationCourse(0, 4))
    seen = []
    for step in range(1, 8):
        ramp.set_step(step)
        seen.append(ramp.metrics["quantize/lambda"])
    assert seen == [0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert QuantizationRamp(warm_start_model(dense), QuantizationCourse()).metrics == {"quantize/lambda": 1}
    assert QuantizationRamp(latent_model(dense), QuantizationCourse(0, 4)).metrics == {}


def test_inserted_norms_change_nothing_at_first_and_are_whole_in_the_end(dense):
    model = warm_start_model(dense, insert_sub_norm=True)
    assert model.config.sub_norm
    ramp = QuantizationRamp(model, QuantizationCourse(2, 2, has_new_norms=True))
    plain = loss_and_gradients(latent_model(dense))["nats"]
    for step in (1, 3):
        ramp.set_step(step)
        np.testing.assert_array_equal(loss_and_gradients(model)["nats"], plain)
    ramp.set_step(5)
    whole = latent_model(dataclasses.replace(with_sub_norms(dense), config=model.config))
    np.testing.assert_array_equal(loss_and_gradients(model)["nats"], loss_and_gradients(whole)["nats"])
    with pytest.raises(ValueError, match="insert_sub_norm: the model has sub-norms already"):
        warm_start_model(with_sub_norms(dense), insert_sub_norm=True)


def test_models_that_cannot_become_ternary_are_refused(dense, tiny_config, tmp_path):
    save_blank_artifact(tmp_path / "ternary", tiny_config, seed=1)
    with pytest.raises(ValueError, match="quantize: found 'ternary' for a model that is quantized already"):
        warm_start_model(open_model(tmp_path / "ternary"))
    odd = dataclasses.replace(dense, config=dataclasses.replace(dense.config, intermediate_size=66))
    with pytest.raises(ValueError, match="intermediate_size: found 66, expected a multiple of 4"):
        warm_start_model(odd)
