"""Directories of other programs, written here by the safetensors library alone."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import jaxlm.load
import mlxlm.load
from jaxlm.common.architecture.packing import pack
from jaxlm.common.architecture.parameters import Kind, stored_tensors
from jaxlm.common.artifact.safetensors import TensorFile
from jaxlm.common.formats.hub import open_hub
from jaxlm.common.formats.open_model import open_model
from tests.conftest import TINY

LLAMA = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
BITNET = LLAMA | {"model_type": "bitnet"}
AUTOBITLINEAR = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"}
ONLINE = AUTOBITLINEAR | {"quantization_mode": "online"}
BITLINEAR = {"quant_method": "bitnet"}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
UP = "model.layers.1.mlp.up_proj.weight"
UP_SCALE = "model.layers.1.mlp.up_proj.weight_scale"

Tensors = dict[str, np.ndarray]


def write(directory: Path, content: dict[str, Any], tensors: Tensors, **quantization: Any) -> Path:
    """Write a directory with one file of tensors."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(content | quantization))
    safetensors.numpy.save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return directory


def bitnet_tensors(kind: Kind = "latent", dtype: Any = np.float32) -> Tensors:
    """Return random tensors of a BitNet, with packed codes of all three values and different scales."""
    rng = np.random.default_rng(0)
    tensors = {}
    for tensor in stored_tensors(TINY, kind):
        if tensor.dtype == "uint8":
            tensors[tensor.name] = pack(rng.integers(-1, 2, (4 * tensor.shape[0], tensor.shape[1])).astype(np.int8))
        else:
            tensors[tensor.name] = (0.5 + rng.random(tensor.shape)).astype(dtype)
    return tensors


def llama_tensors(dtype: Any = np.float32) -> Tensors:
    """Return a model without sub-norms."""
    return {name: tensor for name, tensor in bitnet_tensors("latent", dtype).items() if "sub_norm" not in name}


def assert_equal(found: Any, expected: Tensors) -> None:
    assert list(found) == list(expected)
    for name in expected:
        in_memory = np.uint8 if expected[name].dtype == np.uint8 else np.float32
        assert found[name].dtype == in_memory
        np.testing.assert_array_equal(found[name], expected[name].astype(in_memory))


@pytest.mark.parametrize(
    ("dtype", "float_dtype"),
    [(np.float32, "float32"), (ml_dtypes.bfloat16, "bfloat16"), (np.float16, "float32")],
)
def test_a_llama_is_read_in_any_width(tmp_path, dtype, float_dtype):
    tensors = llama_tensors(dtype)
    artifact = open_hub(write(tmp_path, LLAMA, tensors))
    assert (artifact.kind, artifact.float_dtype, artifact.config.linear) == ("latent", float_dtype, "dense")
    assert artifact.stored == stored_tensors(artifact.config, "latent", float_dtype)
    assert_equal(artifact.tensors, tensors)


def test_a_directory_of_several_widths_counts_as_float32(tmp_path):
    tensors = llama_tensors(ml_dtypes.bfloat16)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.float32)
    assert open_hub(write(tmp_path, LLAMA, tensors)).float_dtype == "float32"


def test_an_untied_head_is_read(tmp_path):
    tensors = llama_tensors()
    tensors[HEAD] = tensors[EMBEDDING][::-1].copy()
    assert_equal(open_hub(write(tmp_path, LLAMA | {"tie_word_embeddings": False}, tensors)).tensors, tensors)


def test_a_tied_head_that_is_stored_has_to_be_the_embedding(tmp_path):
    tensors = llama_tensors()
    directory = write(tmp_path, LLAMA, tensors | {HEAD: tensors[EMBEDDING].copy()})
    assert_equal(open_hub(directory).tensors, tensors)
    write(tmp_path, LLAMA, tensors | {HEAD: tensors[EMBEDDING] + 1})
    with pytest.raises(ValueError, match=r"lm_head.weight is not equal to model.embed_tokens.weight"):
        open_hub(tmp_path)


def test_stored_rotary_frequencies_are_passed_over(tmp_path):
    tensors = llama_tensors()
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    assert_equal(open_hub(write(tmp_path, LLAMA, tensors | {name: np.ones(4, np.float32)})).tensors, tensors)


def test_latent_bitnet_keeps_float32_scales(tmp_path):
    tensors = bitnet_tensors("latent", ml_dtypes.bfloat16)
    artifact = open_hub(write(tmp_path, BITNET, tensors, quantization_config=ONLINE))
    assert (artifact.kind, artifact.float_dtype, artifact.config.scale_dtype) == ("latent", "bfloat16", "float32")
    assert_equal(artifact.tensors, tensors)


@pytest.mark.parametrize(("dtype", "scale_dtype"), [(ml_dtypes.bfloat16, "bfloat16"), (np.float32, "float32")])
def test_packed_bitnet_with_scales_that_multiply_is_ours(tmp_path, dtype, scale_dtype):
    tensors = bitnet_tensors("packed", dtype)
    artifact = open_hub(write(tmp_path, BITNET, tensors, quantization_config=AUTOBITLINEAR))
    assert (artifact.kind, artifact.config.scale_dtype) == ("packed", scale_dtype)
    assert artifact.stored == stored_tensors(artifact.config, "packed", artifact.float_dtype)
    assert_equal(artifact.tensors, tensors)


def test_scales_that_divide_are_inverted_in_float32(tmp_path):
    tensors = {name: t for name, t in bitnet_tensors("packed", ml_dtypes.bfloat16).items() if "sub_norm" not in name}
    artifact = open_hub(write(tmp_path, LLAMA, tensors, quantization_config=BITLINEAR))
    assert (artifact.config.linear, artifact.config.scale_dtype) == ("ternary", "float32")
    scales = {name: tensor for name, tensor in tensors.items() if name.endswith("_scale")}
    assert len(scales) == 14
    for name, scale in scales.items():
        np.testing.assert_array_equal(artifact.tensors[name], np.float32(1) / scale.astype(np.float32))
    powers = tensors | {name: np.full_like(scale, 32) for name, scale in scales.items()}
    artifact = open_hub(write(tmp_path, LLAMA, powers, quantization_config=BITLINEAR))
    assert artifact.config.scale_dtype == "bfloat16"
    assert_equal(artifact.tensors, powers | {name: np.full((1,), 2.0**-5, np.float32) for name in scales})


def test_codes_that_are_floats_are_packed(tmp_path):
    tensors = bitnet_tensors("packed")
    codes = np.random.default_rng(1).integers(-1, 2, (64, 32)).astype(np.int8)
    unpacked = tensors | {UP: codes.astype(ml_dtypes.bfloat16)}
    artifact = open_hub(write(tmp_path, BITNET, unpacked, quantization_config=AUTOBITLINEAR))
    assert_equal(artifact.tensors, tensors | {UP: pack(codes)})
    unpacked[UP][3, 4] = 0.5
    artifact = open_hub(write(tmp_path, BITNET, unpacked, quantization_config=AUTOBITLINEAR))
    with pytest.raises(ValueError, match=rf"{UP}: found weights other than -1, 0 and 1, expected ternary codes"):
        artifact.tensors[UP]


def test_the_sub_norms_of_1bitllm_have_our_names(tmp_path):
    tensors = bitnet_tensors("latent", np.float16)
    renamed = {
        name.replace("attn_sub_norm", "inner_attn_ln").replace("ffn_sub_norm", "ffn_layernorm"): tensor
        for name, tensor in tensors.items()
    }
    artifact = open_hub(write(tmp_path, LLAMA | {"weight_bits": 1, "input_bits": 8}, renamed))
    assert (artifact.config.linear, artifact.config.sub_norm, artifact.config.activation) == ("ternary", True, "silu")
    assert_equal(artifact.tensors, tensors)
    write(tmp_path, LLAMA, tensors | renamed)
    with pytest.raises(ValueError, match="are the same parameter"):
        open_hub(tmp_path)


def change(tensors: Tensors, name: str, value: np.ndarray | None) -> Tensors:
    return {key: tensor for key, tensor in (tensors | {name: value}).items() if tensor is not None}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model.norm.weight", None, "missing tensor model.norm.weight, float32 [32]"),
        (UP_SCALE, None, f"missing tensor {UP_SCALE}, float32 [1]"),
        ("model.norm.bias", np.ones(32, np.float32), "unexpected tensor model.norm.bias"),
        ("model.norm.weight", np.ones(31, np.float16), "found float16 [31], expected float32 [32]"),
        (UP, np.zeros((16, 31), np.uint8), "found uint8 [16, 31], expected uint8 [16, 32]"),
        (UP, np.zeros((16, 32), np.float32), "found float32 [16, 32], expected uint8 [16, 32]"),
        (UP_SCALE, np.ones(2, np.float32), f"{UP_SCALE}: found float32 [2], expected float32 [1]"),
        (UP_SCALE, np.zeros(1, np.float32), f"{UP_SCALE}: found [0.0], expected a positive number"),
        (UP_SCALE, np.full(1, np.nan, np.float32), f"{UP_SCALE}: found [nan], expected a positive number"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, name, value, message):
    tensors = change(bitnet_tensors("packed"), name, value)
    with pytest.raises(ValueError) as error:
        open_hub(write(tmp_path, BITNET, tensors, quantization_config=AUTOBITLINEAR))
    assert message in str(error.value)


@pytest.mark.parametrize("scale", [np.inf, 1e-39, 0.0])
def test_a_scale_that_cannot_be_inverted_is_named(tmp_path, scale):
    tensors = {name: tensor for name, tensor in bitnet_tensors("packed").items() if "sub_norm" not in name}
    tensors[UP_SCALE] = np.full(1, scale, np.float32)
    with pytest.raises(ValueError, match=rf"{UP_SCALE}: found \[.*\], expected a positive number"):
        open_hub(write(tmp_path, LLAMA, tensors, quantization_config=BITLINEAR))


def test_a_code_of_value_3_is_refused_when_it_is_read(tmp_path):
    tensors = bitnet_tensors("packed")
    tensors[UP][2, 3] |= 0b1100
    artifact = open_hub(write(tmp_path, BITNET, tensors, quantization_config=AUTOBITLINEAR))
    with pytest.raises(ValueError, match=rf"{UP}: packed ternary weights: found a code of value 3"):
        artifact.tensors[UP]


def test_a_config_of_more_layers_than_the_files_hold_is_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match="found 20 tensors, too few for num_layers 1000000000000"):
        open_hub(write(tmp_path, LLAMA | {"num_hidden_layers": 10**12}, llama_tensors()))


def test_opening_reads_the_scales_alone(tmp_path, monkeypatch):
    read: list[str] = []
    honest = TensorFile.__getitem__
    monkeypatch.setattr(TensorFile, "__getitem__", lambda file, name: read.append(name) or honest(file, name))
    write(tmp_path, BITNET, bitnet_tensors("packed"), quantization_config=AUTOBITLINEAR)
    artifact = open_hub(tmp_path)
    assert UP in artifact.tensors and "no.weight" not in artifact.tensors
    assert len(read) == 14 and all(name.endswith(".weight_scale") for name in read)
    read.clear()
    artifact.tensors[UP]
    assert read == [UP]


def test_jax_and_mlx_open_it_as_they_open_an_artifact(tmp_path):
    directory = write(tmp_path, BITNET, bitnet_tensors("packed"), quantization_config=AUTOBITLINEAR)
    artifact = open_model(directory)
    model, params, tokenizer = jaxlm.load.load_model(directory)
    assert model.config == artifact.config and tokenizer is None
    np.testing.assert_array_equal(params["layers"]["mlp"]["up_proj"]["weight"].scale[1], artifact.tensors[UP_SCALE][0])
    in_mlx, _ = mlxlm.load.load_model(directory)
    assert in_mlx.layers[1].mlp.up_proj.weight_scale.item() == artifact.tensors[UP_SCALE][0]
