"""A model on its way from float to ternary: what it is at both ends, and between them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.model.language_model import LanguageModel, init_params
from jaxlm.model.loss import loss_sum
from jaxlm.ops.mixed_linear import MixedWeight, mixed_linear, with_share
from jaxlm.ops.ternary_linear import quantize_features, quantize_params, with_ternary
from tests.conftest import VARIANTS


def batch():
    ids = jax.random.randint(jax.random.key(0), (2, 9), 0, 300)
    rows = jnp.zeros((2, 8), jnp.int32)
    return {
        "inputs": ids[:, :-1],
        "targets": ids[:, 1:],
        "positions": rows + jnp.arange(8)[None],
        "segment_ids": rows,
        "loss_mask": rows == 0,
    }


def loss_and_gradients(config, params, weights):
    """Return the loss with `weights(params, ternary)`, and its gradient by parameter."""
    ternary = jax.jit(quantize_params, static_argnums=1)(params, config)

    def loss(params):
        return loss_sum(LanguageModel(config), weights(params, ternary), batch())[0]

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize("variant", ["ternary", "mlgru", "scales_by_group"])
def test_without_quantization_it_is_the_dense_model(tiny_config, variant):
    ternary = dataclasses.replace(tiny_config, **VARIANTS[variant])
    params = init_params(ternary, jax.random.key(1))
    found = loss_and_gradients(ternary, params, lambda params, codes: with_share(params, codes, None))
    at_zero = loss_and_gradients(ternary, params, lambda params, codes: with_share(params, codes, jnp.float32(0)))
    jax.tree.map(lambda left, right: np.testing.assert_allclose(left, right, atol=1e-4), found, at_zero)
    if variant == "ternary":  # the norms inside the linears of mlgru belong to ternary ones
        dense = dataclasses.replace(ternary, linear="dense", activation_bits=8)
        expected = loss_and_gradients(dense, params, lambda params, codes: params)
        jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("variant", ["ternary", "mlgru", "scales_by_group"])
def test_quantized_in_full_it_is_the_ternary_model(tiny_config, variant):
    config = dataclasses.replace(tiny_config, **VARIANTS[variant])
    params = init_params(config, jax.random.key(1))
    found = loss_and_gradients(config, params, lambda params, codes: with_share(params, codes, jnp.float32(1)))
    expected = loss_and_gradients(config, params, with_ternary)
    jax.tree.map(lambda left, right: np.testing.assert_allclose(left, right, rtol=1e-3, atol=1e-3), found, expected)


def test_between_the_ends_value_and_gradients_are_those_of_the_mixed_factors():
    x, latent, dy = (
        jax.random.normal(jax.random.key(seed), shape) for seed, shape in enumerate([(3, 8), (4, 8), (3, 4)])
    )
    mean = np.abs(np.array(latent)).mean()
    codes = np.clip(np.round(np.array(latent) / mean), -1, 1)

    def product(x, latent):
        weight = MixedWeight(latent, codes, np.full((1, 1), mean), jnp.float32(0.25), 8)
        return mixed_linear(quantize_features(x), weight)

    y, pull = jax.vjp(product, x, latent)
    scale = np.abs(np.array(x)).max(axis=1, keepdims=True) / 127
    mixed_x = 0.75 * np.array(x) + 0.25 * np.round(np.array(x) / scale) * scale
    mixed_weight = 0.75 * np.array(latent) + 0.25 * codes * mean
    dx, dlatent = pull(dy)
    np.testing.assert_allclose(y, mixed_x @ mixed_weight.T, atol=1e-5)
    np.testing.assert_allclose(dx, np.array(dy) @ mixed_weight, atol=1e-5)
    np.testing.assert_allclose(dlatent, np.array(dy).T @ mixed_x, atol=1e-5)


def test_inserted_norms_are_mixed_in(tiny_config):
    with_norms = tiny_config
    params = init_params(with_norms, jax.random.key(1))

    def loss(share):
        return loss_and_gradients(
            with_norms, params, lambda params, codes: with_share(params, codes, share, new_norms=True)
        )[0]

    without = dataclasses.replace(with_norms, sub_norm=False)
    plain = loss_and_gradients(without, params, lambda params, codes: with_share(params, codes, None))[0]
    np.testing.assert_array_equal(loss(None), plain)
    np.testing.assert_allclose(loss(jnp.float32(0)), plain, rtol=1e-6)
    np.testing.assert_allclose(loss(jnp.float32(1)), loss_and_gradients(with_norms, params, with_ternary)[0], rtol=1e-5)
    assert abs(loss(jnp.float32(0.5)) - plain) > 1e-3
