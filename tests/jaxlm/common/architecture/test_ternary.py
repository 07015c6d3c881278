import jax
import jax.numpy as jnp
import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxlm.common.architecture import ternary

FRAMEWORKS = [(np, np.asarray), (jnp, jnp.asarray), (mx, mx.array)]


def gaussian(shape, seed=0, std=0.02):
    return (np.random.default_rng(seed).standard_normal(shape) * std).astype(np.float32)


@pytest.mark.parametrize(
    ("shape", "scale_per"),
    [
        ((4, 8), "tensor"),
        ((64, 32), "tensor"),
        ((3, 20, 36), "tensor"),
        ((129, 257), "tensor"),
        ((129, 257), "row"),
        ((20, 36), "row_blocks:5"),
        ((3, 20, 96), "group:32"),
        ((2, 256), "group:128"),
    ],
)
@pytest.mark.parametrize("scale_dtype", ["bfloat16", "float16", "float32"])
def test_codes_and_scale_are_bit_equal_in_every_framework(shape, scale_per, scale_dtype):
    weight, form = gaussian(shape), ternary.TernaryForm(scale_per, scale_dtype)
    results = [ternary.quantize_weight(array(weight), form, xp) for xp, array in FRAMEWORKS]
    results.append(jax.jit(lambda w: ternary.quantize_weight(w, form, jnp))(weight))
    for codes, scale in results:
        np.testing.assert_array_equal(np.array(codes), np.array(results[0][0]))
        np.testing.assert_array_equal(np.array(scale), np.array(results[0][1]))


def test_mean_does_not_depend_on_the_order_of_summation():
    weight = gaussian((96, 160), std=0.3)
    rng = np.random.default_rng(1)
    expected = ternary.absmean(weight, np)
    for _ in range(5):
        shuffled = rng.permuted(rng.permuted(weight, axis=0), axis=1)
        assert ternary.absmean(shuffled, np) == expected


@pytest.mark.parametrize("std", [1e-4, 0.02, 30.0])
def test_mean_is_the_mean(std):
    weight = gaussian((128, 256), std=std)
    np.testing.assert_allclose(ternary.absmean(weight, np).item(), np.abs(weight).mean(dtype=np.float64), rtol=2e-6)


def test_codes_are_the_clipped_rounded_quotient():
    weight = gaussian((64, 64))
    codes, scale = ternary.quantize_weight(weight, ternary.TernaryForm(scale_dtype="float32"), np)
    quotient = weight.astype(np.float64) / scale
    np.testing.assert_array_equal(codes, np.clip(np.round(quotient), -1, 1))
    assert 0.28 < np.mean(codes == 0) < 0.34  # a Gaussian has 31 % zeros at threshold 0.5, 57 % at 1.0


def test_half_the_scale_rounds_to_even_that_is_zero():
    weight = np.array([[1.0, -1.0, 0.5, 1.5]], np.float32)  # mean 1, so 0.5 is exactly the threshold
    codes, scale = ternary.quantize_weight(weight, ternary.TernaryForm(scale_dtype="float32"), np)
    assert scale == 1.0
    assert codes.tolist() == [[1, -1, 0, 1]]


def test_bfloat16_scale_is_rounded_and_exact_in_float16():
    for seed, std in enumerate([1e-6, 1e-3, 0.02, 5.0]):
        _, scale = ternary.quantize_weight(gaussian((32, 32), seed, std), ternary.TernaryForm(), np)
        assert scale.view(np.uint32) & 0xFFFF == 0
        assert np.float16(scale) == scale >= 2.0**-14


@given(arrays(np.float32, 50, elements=st.floats(2.0**-14, 65000, width=32)))
def test_round_to_float16_is_round_to_nearest_even(values):
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(ternary.round_to("float16", values, np), expected)


@pytest.mark.parametrize(
    ("scale_per", "grid"), [("tensor", (1, 1)), ("row", (12, 1)), ("row_blocks:3", (3, 1)), ("group:32", (12, 2))]
)
def test_every_tile_is_quantized_alone(scale_per, grid):
    weight = gaussian((12, 64)) * np.geomspace(1, 50, 64, dtype=np.float32)
    codes, scale = ternary.quantize_weight(weight, ternary.TernaryForm(scale_per), np)
    assert scale.shape == grid
    rows, columns = 12 // grid[0], 64 // grid[1]
    for row, column in np.ndindex(grid):
        tile = slice(row * rows, (row + 1) * rows), slice(column * columns, (column + 1) * columns)
        alone, scale_alone = ternary.quantize_weight(weight[tile], ternary.TernaryForm(), np)
        np.testing.assert_array_equal(codes[tile], alone)
        assert scale[row, column] == scale_alone.item()
        np.testing.assert_array_equal(ternary.dequantize(codes, scale, np)[tile], alone * scale_alone)


@pytest.mark.parametrize("scale_per", ["tensor", "row", "row_blocks:3", "group:32"])
@pytest.mark.parametrize("scale_dtype", ["bfloat16", "float16", "float32"])
def test_latent_weights_made_of_codes_and_scales_quantize_to_them(scale_per, scale_dtype):
    form = ternary.TernaryForm(scale_per, scale_dtype)
    for seed, std in enumerate([1e-3, 0.02, 7.0]):
        codes, scale = ternary.quantize_weight(gaussian((12, 64), seed, std), form, np)
        found, scale_found = ternary.quantize_weight(ternary.latent_weight(codes, scale, np), form, np)
        np.testing.assert_array_equal(found, codes)
        np.testing.assert_allclose(scale_found, scale, rtol=3e-5 if scale_dtype == "float32" else 0)


def test_a_tile_of_zeros_has_latent_weights_of_zero():
    codes, scale = np.zeros((2, 64), np.int8), np.full((2, 2), 0.5, np.float32)
    codes[0, 0] = 1
    latent = ternary.latent_weight(codes, scale, np)
    assert latent[0, 0] == 16 and not latent[0, 1:].any() and not latent[1].any()


@pytest.mark.parametrize(
    "scale_per", ["", "column", "group", "group:16", "group:", "row_blocks:0", "row_blocks:-1", "row:2"]
)
def test_an_unknown_granularity_is_refused(scale_per):
    with pytest.raises(ValueError, match=r"^scale_per: found '.*', expected tensor, row, row_blocks:N"):
        ternary.TernaryForm(scale_per)


@pytest.mark.parametrize("scale_per", ["row_blocks:5", "group:32"])
def test_a_matrix_that_does_not_divide_is_refused(scale_per):
    with pytest.raises(ValueError, match=f"^scale_per: found {scale_per} for a matrix of 12 x 48, expected a"):
        ternary.TernaryForm(scale_per).grid(12, 48)


@given(arrays(np.float32, 50, elements=st.floats(2.0**-20, 2.0**20, width=32)))
def test_round_to_bfloat16_is_round_to_nearest_even(values):
    expected = values.astype(jnp.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(ternary.round_to("bfloat16", values, np), expected)


def test_a_zero_matrix_has_zero_codes_and_a_positive_scale():
    codes, scale = ternary.quantize_weight(np.zeros((4, 4), np.float32), ternary.TernaryForm(scale_dtype="float32"), np)
    assert not codes.any()
    assert scale == np.float32(1e-5)


def test_activations_are_integers_in_range_with_the_absmax_at_127():
    x = gaussian((5, 7, 64), std=3.0)
    for xp, array in FRAMEWORKS:
        quantized, scale = (np.array(part) for part in ternary.quantize_activation(array(x), xp))
        np.testing.assert_array_equal(quantized, np.round(quantized))
        np.testing.assert_array_equal(np.abs(quantized).max(-1), 127)
        assert np.abs(quantized / scale - x).max() <= 0.5001 / scale.min()
    zero, scale = ternary.quantize_activation(np.zeros((1, 4), np.float32), np)
    assert not zero.any() and np.isfinite(scale).all()


def test_rows_are_within_half_a_step():
    weight = gaussian((20, 16))
    codes, scale = ternary.quantize_rows(weight, np)
    assert codes.dtype == np.int8
    assert (np.abs(codes * scale - weight) <= 0.5001 * scale).all()


@pytest.mark.parametrize("shape", [(1, 2**16), (2**15, 2**15)])
def test_a_matrix_whose_scale_cannot_be_summed_exactly_is_refused(shape):
    weight = np.broadcast_to(np.float32(1), shape)
    with pytest.raises(ValueError, match=r"ternary matrix: found .* weights, expected at most 65,535 columns"):
        ternary.absmean(weight, np)
