import mlx.core as mx
import numpy as np
import pytest

from jaxlm.common.architecture.config import ModelConfig
from mlxlm.model.layers import ACTIVATIONS, BitLinear


def config(**changes) -> ModelConfig:
    sizes = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_layers": 1}
    return ModelConfig(**sizes | {"num_heads": 4, "num_kv_heads": 2, "linear": "ternary"} | changes)


def test_a_ternary_weight_costs_two_bits_in_memory():
    layer = BitLinear(config(), 256, 64)
    weights = sum(value.nbytes for value in layer.parameters().values())
    assert weights == 64 * 256 // 4 + 4


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_those_of_jax(name):
    from jaxlm.model.layers import ACTIVATIONS as EXPECTED

    x = np.linspace(-6, 6, 101, dtype=np.float32)
    np.testing.assert_allclose(np.array(ACTIVATIONS[name](mx.array(x))), EXPECTED[name](x), atol=2e-6)
