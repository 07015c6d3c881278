import mlx.core as mx
import numpy as np
import pytest

from jaxlm.spec.config import ModelConfig
from mlxlm.layers import ACTIVATIONS, BitLinear, pack_affine, unpack_affine


def config(**changes) -> ModelConfig:
    sizes = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_layers": 1}
    return ModelConfig(**sizes | {"num_heads": 4, "num_kv_heads": 2, "linear": "ternary"} | changes)


def random_codes(rows, columns):
    return np.random.default_rng(0).integers(-1, 2, (rows, columns)).astype(np.int8)


@pytest.mark.parametrize("columns", [32, 64, 128, 192, 20, 5460])
def test_integer_products_are_exact_also_where_columns_are_padded(columns):
    codes = random_codes(12, columns)
    layer = BitLinear(config(), columns, 12)
    layer.set_codes(codes, 0.25)
    quantized = np.random.default_rng(1).integers(-127, 128, (3, columns))
    found = np.array(layer.integer_product(mx.array(quantized.astype(np.float32))))
    np.testing.assert_array_equal(found, quantized @ codes.T.astype(np.int64))
    np.testing.assert_array_equal(layer.codes(), codes)


def test_the_format_is_what_mlx_dequantizes():
    codes = random_codes(8, 128)
    words = mx.array(pack_affine(codes))
    scales, biases = mx.full((8, 1), 0.375), mx.full((8, 1), -0.375)
    dequantized = mx.dequantize(words, scales, biases, group_size=128, bits=2)
    np.testing.assert_array_equal(np.array(dequantized), codes * np.float32(0.375))
    np.testing.assert_array_equal(unpack_affine(np.array(words)), codes)


def test_a_ternary_weight_costs_two_bits_in_memory():
    layer = BitLinear(config(), 256, 64)
    weights = sum(value.nbytes for value in layer.parameters().values())
    assert weights == 64 * 256 // 4 + 4


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_those_of_jax(name):
    from jaxlm.layers import ACTIVATIONS as EXPECTED

    x = np.linspace(-6, 6, 101, dtype=np.float32)
    np.testing.assert_allclose(np.array(ACTIVATIONS[name](mx.array(x))), EXPECTED[name](x), atol=2e-6)
