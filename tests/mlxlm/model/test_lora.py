import mlx.core as mx
import numpy as np
import pytest

from jaxlm.common.architecture.config import ModelConfig
from mlxlm.model.layers import BitLinear


@pytest.fixture(params=[False, True], ids=["plain", "linear_norm"])
def layer(request):
    sizes = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_layers": 1}
    config = ModelConfig(**sizes, num_heads=4, num_kv_heads=2, linear="ternary", linear_norm=request.param)
    layer = BitLinear(config, 32, 24)
    layer.update(layer.from_latent(mx.random.normal((24, 32), key=mx.random.key(0))))
    if request.param:
        layer.rms_norm.weight = mx.linspace(0.5, 2, 32)
    return layer


def test_a_new_adapter_changes_nothing(layer):
    x = mx.random.normal((2, 3, 32), key=mx.random.key(1))
    np.testing.assert_array_equal(np.array(layer.to_lora(r=4, scale=2.0, dropout=0.0)(x)), np.array(layer(x)))


def test_the_adapter_adds_its_product_over_what_the_weight_sees(layer):
    x = mx.random.normal((2, 3, 32), key=mx.random.key(1))
    adapted = layer.to_lora(r=4, scale=2.0, dropout=0.0)
    adapted.lora_b = mx.random.normal((4, 24), key=mx.random.key(2))
    assert adapted.lora_a.shape == (32, 4)
    normed = layer.rms_norm(x) if "rms_norm" in layer else x
    expected = layer(x) + 2 * normed @ (adapted.lora_a @ adapted.lora_b)
    np.testing.assert_allclose(np.array(adapted(x)), np.array(expected), atol=1e-4)


def test_fusing_is_refused(layer):
    with pytest.raises(ValueError, match="found a ternary weight, expected a dense one"):
        layer.to_lora(r=4, scale=2.0, dropout=0.0).fuse()
