import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.common.architecture.ternary import TernaryForm, quantize_activation, quantize_weight
from jaxlm.ops.ternary_linear import (
    TernaryWeight,
    quantize_features,
    straight_through,
    ternarize_weight,
    ternary_linear,
)


def fake_quantized_linear(x, latent, scale_dtype="bfloat16"):
    """Return the linear in plain floats: dequantize both sides, multiply, let gradients pass straight through."""
    quantized, scale = quantize_activation(x, jnp)
    x = x + jax.lax.stop_gradient(quantized / scale - x)
    codes, weight_scale = quantize_weight(latent, TernaryForm(scale_dtype=scale_dtype), jnp)
    weight = latent + jax.lax.stop_gradient(codes * weight_scale - latent)
    return jnp.einsum("...i,oi->...o", x, weight)


@pytest.fixture
def problem():
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, 5, 48))
    latent = jax.random.normal(keys[1], (24, 48)) * 0.05
    dy = jax.random.normal(keys[2], (2, 5, 24))
    return x, latent, dy


def test_equals_the_plain_float_form_in_value_and_gradient(problem):
    x, latent, dy = problem

    def ours(x, latent):
        return ternary_linear(x, ternarize_weight(latent, TernaryForm()).replace(latent=latent))

    y, vjp = jax.vjp(ours, x, latent)
    expected_y, expected_vjp = jax.vjp(fake_quantized_linear, x, latent)
    np.testing.assert_allclose(y, expected_y, atol=1e-5)
    for found, expected in zip(vjp(dy), expected_vjp(dy), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_the_integer_product_is_exact(problem):
    x, latent, _ = problem
    weight = ternarize_weight(latent, TernaryForm())
    quantized, scale = (np.asarray(part, np.float64) for part in quantize_activation(x, jnp))
    products = np.einsum("...i,oi->...o", quantized, np.asarray(weight.codes, np.float64))
    y = ternary_linear(x, weight)
    expected = products.astype(np.float32) * np.asarray(weight.scale[0, 0] / jnp.asarray(scale, jnp.float32))
    np.testing.assert_array_equal(y, expected)


def test_forward_never_reads_the_latent_weights(problem):
    x, latent, _ = problem
    weight = ternarize_weight(latent, TernaryForm()).replace(latent=jnp.full_like(latent, jnp.nan))
    assert np.isfinite(ternary_linear(x, weight)).all()


def test_a_frozen_weight_still_passes_the_gradient_to_its_input(problem):
    x, latent, dy = problem
    weight = ternarize_weight(latent, TernaryForm())
    _, vjp = jax.vjp(lambda x: ternary_linear(x, weight), x)
    expected = jnp.einsum("blo,oi->bli", dy, weight.codes * weight.scale)
    np.testing.assert_allclose(vjp(dy)[0], expected, rtol=1e-5, atol=1e-6)


def test_residuals_are_bytes(problem):
    x, latent, _ = problem
    weight = ternarize_weight(latent, TernaryForm()).replace(latent=latent)
    _, vjp = jax.vjp(ternary_linear, x, weight)
    kept = [leaf for leaf in jax.tree.leaves(vjp) if hasattr(leaf, "shape") and leaf.shape == x.shape]
    assert [leaf.dtype for leaf in kept] == [jnp.int8]


def test_linears_that_share_their_input_equal_those_that_each_quantize_it_and_keep_one_copy(problem):
    x, latent, dy = problem
    weights = [ternarize_weight(w, TernaryForm()).replace(latent=w) for w in (latent, 2 * latent[::-1] ** 2)]

    def shared(x, weights):
        quantized = quantize_features(x)
        return [ternary_linear(quantized, weight) for weight in weights]

    def separate(x, weights):
        return [ternary_linear(x, weight) for weight in weights]

    (found, vjp), (expected, expected_vjp) = (jax.vjp(form, x, weights) for form in (shared, separate))
    jax.tree.map(np.testing.assert_array_equal, (found, vjp([dy, dy])), (expected, expected_vjp([dy, dy])))
    kept = {id(leaf) for leaf in jax.tree.leaves(vjp) if getattr(leaf, "dtype", None) == jnp.int8}
    kept -= {id(weight.codes) for weight in weights}
    assert len(kept) == 1


def test_bfloat16_activations_stay_bfloat16(problem):
    x, latent, dy = problem
    weight = ternarize_weight(latent, TernaryForm()).replace(latent=latent)
    y, vjp = jax.vjp(ternary_linear, x.astype(jnp.bfloat16), weight)
    dx, dweight = vjp(dy.astype(jnp.bfloat16))
    assert y.dtype == dx.dtype == jnp.bfloat16
    assert dweight.latent.dtype == jnp.float32


def test_straight_through_is_exact_forward():
    latent = jnp.array([0.1, 1e8, -3.0])
    quantized = jnp.array([1.0, 0.1, 0.3])
    y, vjp = jax.vjp(straight_through, latent, quantized)
    np.testing.assert_array_equal(y, quantized)
    np.testing.assert_array_equal(vjp(jnp.ones(3))[0], 1.0)


def test_a_stack_of_matrices_has_a_scale_each(problem):
    _, latent, _ = problem
    stacked = ternarize_weight(jnp.stack([latent, latent * 3]), TernaryForm())
    alone = ternarize_weight(latent * 3, TernaryForm())
    assert isinstance(stacked, TernaryWeight)
    np.testing.assert_array_equal(stacked.codes[1], alone.codes)
    assert stacked.scale.shape == (2, 1, 1) and stacked.scale[1] == alone.scale


@pytest.mark.parametrize("activation_bits", [8, None])
@pytest.mark.parametrize("scale_per", ["tensor", "row", "row_blocks:2", "group:32"])
def test_every_form_is_the_product_of_the_dequantized_values(scale_per, activation_bits):
    rng = np.random.default_rng(3)
    x, dy = (jnp.asarray(rng.standard_normal((2, 3, size)), jnp.float32) for size in (64, 12))
    latent = jnp.asarray(rng.standard_normal((12, 64)) * np.geomspace(1, 9, 64), jnp.float32)
    form = TernaryForm(scale_per, "float16", activation_bits)
    weight = ternarize_weight(latent, form).replace(latent=latent)
    assert weight.scale.shape == form.grid(12, 64)
    y, vjp = jax.vjp(ternary_linear, x, weight)
    dx, dweight = vjp(dy)
    matrix = weight.dequantized(jnp.float32)
    integers, scale = quantize_activation(x, jnp)
    features = integers / scale if activation_bits else x
    np.testing.assert_allclose(y, jnp.einsum("bli,oi->blo", features, matrix), rtol=2e-5, atol=2e-4)
    np.testing.assert_allclose(dx, jnp.einsum("blo,oi->bli", dy, matrix), rtol=2e-5, atol=2e-4)
    np.testing.assert_allclose(dweight.latent, jnp.einsum("blo,bli->oi", dy, features), rtol=2e-5, atol=2e-4)
    one_scale = ternary_linear(x, ternarize_weight(latent, TernaryForm("tensor", "float16", activation_bits)))
    assert scale_per == "tensor" or not np.allclose(y, one_scale, atol=0.1)
