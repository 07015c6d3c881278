import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.checkpoints.weights import tree_weights
from jaxlm.common.architecture.parameters import parameter_count, ternary_parameter_count
from jaxlm.conversion.compare import compare_logits, compare_weights, probe_logits
from jaxlm.model.language_model import init_params
from jaxlm.ops.ternary_linear import TernaryWeight, ternarize


@pytest.fixture
def params(tiny_config):
    return jax.jit(init_params, static_argnums=0)(tiny_config, jax.random.key(0))


def compare(config, params, other_config, other_params):
    return compare_weights(config, tree_weights(params), other_config, tree_weights(other_params))


def logits_of(config, params):
    return probe_logits(config, tree_weights(params))


def changed(params, change):
    up = params["layers"]["mlp"]["up_proj"]
    mlp = params["layers"]["mlp"] | {"up_proj": up | {"weight": change(up["weight"])}}
    return params | {"layers": params["layers"] | {"mlp": mlp}}


def test_a_model_is_itself_latent_or_ternary(tiny_config, params):
    for other in (params, ternarize(params, tiny_config)):
        found = compare(tiny_config, params, tiny_config, other)
        assert found.ternary_codes == ternary_parameter_count(tiny_config)
        assert found.codes_differing == found.scales_differing == found.floats_differing == 0
        logits = compare_logits(logits_of(tiny_config, params), logits_of(tiny_config, other))
        assert logits.max_difference == 0 and logits.top1_agreement == 1
    assert found.floats == parameter_count(tiny_config) - ternary_parameter_count(tiny_config)


def test_scales_and_latent_weights_that_differ_are_counted(tiny_config, params):
    other = changed(params, lambda weight: weight * 1.1)
    found = compare(tiny_config, params, tiny_config, other)
    assert found.scales_differing == 2 and 0.05 < found.scales_max_difference < 0.15
    assert found.floats_differing == other["layers"]["mlp"]["up_proj"]["weight"].size
    assert compare_logits(logits_of(tiny_config, params), logits_of(tiny_config, other)).max_difference > 0


def test_a_code_that_differs_is_counted(tiny_config, params):
    other = changed(params, lambda weight: weight.at[0, 0, 0].set(-jnp.sign(weight[0, 0, 0])))
    assert compare(tiny_config, params, tiny_config, other).codes_differing == 1


def test_floats_of_a_dense_model_are_compared_with_the_codes_that_they_stand_for(tiny_config, params):
    dense = dataclasses.replace(tiny_config, linear="dense")
    dequantized = jax.tree.map(
        lambda leaf: leaf.codes * leaf.scale if hasattr(leaf, "codes") else leaf,
        ternarize(params, tiny_config),
        is_leaf=lambda leaf: hasattr(leaf, "codes"),
    )
    found = compare(tiny_config, params, dense, dequantized)
    assert found.ternary_codes == ternary_parameter_count(tiny_config)
    assert found.codes_differing == found.scales_differing == 0
    assert compare(tiny_config, params, dense, params).codes_differing > 0


def test_models_of_different_shapes_are_refused(tiny_config, params):
    wider = dataclasses.replace(tiny_config, intermediate_size=2 * tiny_config.intermediate_size)
    other = jax.jit(init_params, static_argnums=0)(wider, jax.random.key(0))
    with pytest.raises(ValueError, match=r"different shapes: layers\.mlp\.gate_proj\.weight: found"):
        compare(tiny_config, params, wider, other)


def test_scales_are_compared_where_one_form_repeats_them_and_where_codes_use_them(tiny_config):
    coarse = dataclasses.replace(tiny_config, scale_per="row", activation_bits=None)
    fine = dataclasses.replace(coarse, scale_per="group:32")

    def weights(config, change=1.0):
        drawn = np.random.default_rng(1)

        def weight(parameter):
            if parameter.storage != "ternary":
                return np.ones(parameter.shape, np.float32)
            rows, columns = parameter.shape
            codes = drawn.integers(-1, 2, (rows, columns), np.int8)
            scale = drawn.uniform(0.1, 1, (rows, 1)).astype(np.float32)
            codes[0], scale[0] = 0, change  # a row of zeros, whose scale multiplies nothing
            groups = config.ternary_form.grid(rows, columns)[1]
            return TernaryWeight(codes, scale.repeat(groups, axis=1), config.activation_bits)

        return weight

    same = compare_weights(coarse, weights(coarse), fine, weights(fine, change=0.5))
    assert same.ternary_codes > 0 and same.codes_differing == same.scales_differing == 0

    original = weights(fine)

    def scaled(parameter):
        weight = original(parameter)
        return weight.replace(scale=weight.scale * np.float32(1.5)) if isinstance(weight, TernaryWeight) else weight

    other = compare_weights(coarse, weights(coarse), fine, scaled)
    assert other.scales_differing > 0 and other.scales_max_difference == pytest.approx(0.5)
