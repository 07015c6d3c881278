import dataclasses
import json

import numpy as np
import pytest

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.packing import pack, unpack
from jaxlm.common.architecture.parameters import parameters, scale_name
from jaxlm.common.architecture.ternary import quantize_weight
from jaxlm.common.artifact.model_files import CONFIG, GENERATION_CONFIG
from jaxlm.common.formats.dequantized import write_dequantized
from jaxlm.common.formats.hub import open_hub
from tests.conftest import TINY

LLAMA = dataclasses.replace(TINY, sub_norm=False, bos_id=1, eos_id=2)


def packed_tensors(config: ModelConfig) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    tensors = {}
    for parameter in parameters(config):
        tensor = rng.standard_normal(parameter.shape).astype(np.float32)
        tensors[parameter.name] = tensor
        if parameter.storage == "ternary":
            shape = config.ternary_form.stored_shape(*parameter.shape)
            codes, scale = quantize_weight(tensor, config.ternary_form, np)
            tensors[parameter.name], tensors[scale_name(parameter.name)] = (
                pack(codes),
                scale.reshape(shape),
            )
    return tensors


@pytest.mark.parametrize("float_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("config", "model_type"), [(TINY, "bitnet"), (LLAMA, "llama")])
def test_weights_are_codes_times_scale(tmp_path, config, model_type, float_dtype):
    tensors = packed_tensors(config)
    read: list[str] = []
    write_dequantized(tmp_path, config, lambda name: read.append(name) or tensors[name], float_dtype=float_dtype)
    assert read == list(tensors)
    content = json.loads((tmp_path / CONFIG).read_text())
    assert content["model_type"] == model_type and not {"jaxlm", "quantization_config"} & set(content)
    artifact = open_hub(tmp_path)
    assert (artifact.config.linear, artifact.config.sub_norm) == ("dense", config.sub_norm)
    assert (artifact.kind, artifact.float_dtype) == ("latent", float_dtype)
    for parameter in parameters(config):
        if parameter.storage == "ternary":
            expected = unpack(tensors[parameter.name], parameter.shape[0]) * tensors[scale_name(parameter.name)]
            np.testing.assert_array_equal(artifact.tensors[parameter.name], expected)


def test_it_has_the_ids_of_generation_and_no_manifest(tmp_path):
    write_dequantized(tmp_path, LLAMA, packed_tensors(LLAMA).__getitem__)
    assert json.loads((tmp_path / GENERATION_CONFIG).read_text()) == {"bos_token_id": 1, "eos_token_id": 2}
    assert {path.name for path in tmp_path.iterdir()} == {CONFIG, GENERATION_CONFIG, "model.safetensors"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"linear_norm": True}, "dequantized: found linear_norm"),
        ({"embedding": "int8"}, "dequantized: found model type 'jaxlm'"),
        ({"scale_dtype": "float32"}, "found 'bfloat16', which rounds scales of float32, expected float32"),
    ],
)
def test_a_model_without_a_class_in_transformers_is_refused(tmp_path, change, message):
    config = dataclasses.replace(TINY, **change)
    with pytest.raises(ValueError, match=message):
        write_dequantized(tmp_path, config, packed_tensors(config).__getitem__, float_dtype="bfloat16")
    assert list(tmp_path.iterdir()) == []
