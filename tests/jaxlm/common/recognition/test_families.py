"""Models of other families are named by their config.json, and those that are read are not."""

import re

import pytest

from jaxlm.common.architecture.hf_config import to_hf_config
from jaxlm.common.recognition.families import other_family
from tests.conftest import TINY


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ({"vision_config": {}}, r"text and images or sound \(vision_config\)"),
        ({"model_type": "qwen3_moe"}, r"mixture of experts \(model_type 'qwen3_moe'\)"),
        (
            {"model_type": "llama", "num_local_experts": 8},
            r"mixture of experts .*num_local_experts 8\)",
        ),
        ({"quantization": {"bits": 1, "group_size": 128}}, r"binary model.*\(quantization: bits 1\)"),
        ({"quantization": {"bits": 2, "hadamard_block": 128}}, r"Hadamard variant.*\(hadamard_block 128\)"),
        ({"quantization_config": {"quant_method": "bitnet_hadamard"}}, r"Hadamard variant.*quant_method 'bitnet_had"),
        ({"quantization_config": {"online_rotation": True}}, r"Hadamard variant.*\(online_rotation True\)"),
        ({"quantization_config": {"quant_method": "binary"}}, r"binary model.*\(quant_method 'binary'\)"),
        (
            {"model_type": "qwen3_next", "full_attention_interval": 4},
            r"hybrid or recurrent.*attention_interval 4",
        ),
    ],
)
def test_another_family_is_named(content, name):
    found = other_family({"model_type": "llama"} | content)
    assert found is not None
    assert re.search(name, found), found


@pytest.mark.parametrize(
    "content",
    [
        {"model_type": "llama", "num_local_experts": 1, "use_hadamard": False, "rotation": None},
        {"model_type": "llama", "weight_bits": 1, "input_bits": 8},
        {"model_type": "qwen3", "quantization": {"bits": 2, "group_size": 128, "mode": "affine"}},
        to_hf_config(TINY, "packed", "float32"),
    ],
)
def test_a_model_that_is_read_is_not(content):
    assert other_family(content) is None
