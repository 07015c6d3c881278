import mlx.core as mx
import numpy as np
import pytest

from jaxlm.common.architecture.packing import pack_affine
from jaxlm.common.architecture.ternary import quantize_activation
from mlxlm.model.ternary_linear import integer_product, ternary_linear


def random_codes(rows, columns):
    return np.random.default_rng(0).integers(-1, 2, (rows, columns)).astype(np.int8)


@pytest.mark.parametrize("columns", [32, 64, 128, 192, 20, 5460])
def test_integer_products_are_exact_also_where_columns_are_padded(columns):
    codes = random_codes(12, columns)
    quantized = np.random.default_rng(1).integers(-127, 128, (3, columns))
    found = integer_product(mx.array(quantized.astype(np.float32)), mx.array(pack_affine(codes)))
    np.testing.assert_array_equal(np.array(found), quantized @ codes.T.astype(np.int64))


@pytest.mark.parametrize("columns", [64, 20])
def test_the_gradient_is_straight_through(columns):
    codes = random_codes(12, columns)
    weight, scale = mx.array(pack_affine(codes)), mx.array([0.375])
    x = np.random.default_rng(1).standard_normal((2, 3, columns)).astype(np.float32)
    dy = np.random.default_rng(2).standard_normal((2, 3, 12)).astype(np.float32)

    def product(x):
        return (ternary_linear(x, weight, scale, 8) * mx.array(dy)).sum()

    found = np.array(mx.grad(product)(mx.array(x)))
    np.testing.assert_allclose(found, dy @ (codes * np.float32(0.375)), atol=1e-5)
    quantized, step = quantize_activation(x, np)
    expected = (quantized @ codes.T) * (np.float32(0.375) / step)
    np.testing.assert_array_equal(np.array(ternary_linear(mx.array(x), weight, scale, 8)), expected)
