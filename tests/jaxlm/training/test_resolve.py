import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from jaxlm.common.architecture.presets import preset
from jaxlm.training.resolve import (
    backward_dtype,
    describe_model,
    remat_forms,
    training_model,
)
from jaxlm.training.train_config import TrainConfig
from tests.conftest import TINY


@pytest.mark.parametrize(
    ("name", "dtype", "expected"),
    [
        ("auto", "float32", None),
        ("float32", "float32", None),
        ("bfloat16", "float32", "bfloat16"),
        ("auto", "bfloat16", None),
        ("bfloat16", "bfloat16", None),
    ],
)
def test_the_precision_of_the_gradients_products(name, dtype, expected):
    assert backward_dtype(name, jnp.dtype(dtype)) == expected


def test_a_precision_beside_that_of_16_bit_activations_is_refused():
    with pytest.raises(
        ValueError, match="backward_dtype: found float32 with activations in bfloat16, expected that or"
    ):
        backward_dtype("float32", jnp.bfloat16)


@pytest.mark.parametrize(
    ("linear", "dtype", "platform", "expected"),
    [
        ("ternary", "float32", "cpu", ("none", "products", "ternary", "blocks")),
        ("ternary", "bfloat16", "cpu", ("none", "ternary", "blocks")),
        ("ternary", "bfloat16", "tpu", ("products", "ternary", "blocks")),
        ("dense", "bfloat16", "cpu", ("none", "products", "blocks")),
    ],
)
def test_the_forms_of_checkpointing_begin_with_the_fastest(linear, dtype, platform, expected):
    model, device = dataclasses.replace(TINY, linear=linear), SimpleNamespace(platform=platform)
    assert remat_forms("auto", model, jnp.dtype(dtype), device) == expected
    assert remat_forms("none", model, jnp.dtype(dtype), device) == ("none",)
    deep = dataclasses.replace(model, num_layers=13)
    assert remat_forms("auto", deep, jnp.dtype(dtype), device) == tuple(form for form in expected if form != "none")


@pytest.mark.parametrize(
    ("remat", "layers", "given", "expected"),
    [
        ("auto", 12, False, True),
        ("auto", 13, False, False),
        ("auto", 13, True, True),
        ("none", 12, False, False),
        ("none", 12, True, True),
    ],
)
def test_layers_run_one_after_another_where_auto_saves_all_activations(remat, layers, given, expected):
    config = TrainConfig(data_dir=["data"], output_dir="run", remat=remat, unroll_layers=given)
    model = training_model(config, dataclasses.replace(TINY, num_layers=layers), jax.devices("cpu")[0])
    assert model.unroll_layers == expected


@pytest.mark.parametrize(("unrolled", "words"), [(False, ""), (True, ", layers unrolled")])
def test_the_model_says_how_it_is_trained(unrolled, words):
    config = TrainConfig(
        data_dir=["data"], output_dir="run", backward_dtype="bfloat16", remat="blocks", unroll_layers=unrolled
    )
    model = training_model(config, preset("ternary-tiny"), jax.devices("cpu")[0])
    assert model.backward_dtype == "bfloat16"
    assert describe_model(model) == f"float32, gradients' products bfloat16, attention xla, remat blocks{words}"
