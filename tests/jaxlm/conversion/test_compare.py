import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jaxlm.checkpoints.weights import tree_weights
from jaxlm.common.architecture.parameters import parameter_count, ternary_parameter_count
from jaxlm.conversion.compare import compare_logits, compare_weights, probe_logits
from jaxlm.model.language_model import init_params
from jaxlm.ops.ternary_linear import ternarize


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
