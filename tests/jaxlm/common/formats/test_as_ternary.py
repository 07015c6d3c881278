"""Dense directories that are ternary models: floats with few scales, and latents that no config names."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest

from jaxlm.common.architecture import presets
from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.parameters import parameters, scale_name, stored_tensors
from jaxlm.common.artifact.artifact import save_artifact
from jaxlm.common.formats import as_ternary
from jaxlm.common.formats.as_ternary import TernaryReading, preset_of_shape
from jaxlm.common.formats.dequantized import write_dequantized
from jaxlm.common.formats.open_model import open_model
from tests.jaxlm.common.formats.test_hub import write
from tests.jaxlm.common.formats.test_mlx_quantized import GROUPED, packed_tensors

DENSE = {
    "model_type": "llama",
    "vocab_size": 48,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
Q = "model.layers.0.self_attn.q_proj.weight"


def unpacked(directory, config, tensors, float_dtype="float16"):
    directory.mkdir()
    write_dequantized(directory, config, tensors.__getitem__, float_dtype=float_dtype)
    return directory


def opened(directory, **reading):
    lines = []
    reading = TernaryReading(**reading) if reading else None
    return open_model(directory, reading=reading, log=lines.append), lines


def latents(dtype=np.float32):
    config = ModelConfig(
        vocab_size=48, hidden_size=128, intermediate_size=256, num_layers=2, num_heads=4, num_kv_heads=2
    )
    rng = np.random.default_rng(0)
    return {t.name: rng.standard_normal(t.shape).astype(dtype) for t in stored_tensors(config, "latent")}


@pytest.mark.parametrize("scale_per", ["tensor", "row", "row_blocks:2", "group:128", "group:64", "group:32"])
@pytest.mark.parametrize("embedding", ["ternary", "float"])
def test_ternary_floats_keep_every_code_and_scale(tmp_path, scale_per, embedding):
    config = dataclasses.replace(
        GROUPED,
        scale_per=scale_per,
        scale_dtype="float32" if scale_per == "tensor" else "float16",
        embedding=embedding,
        tie_word_embeddings=False,
        ternary_head=embedding == "ternary",
    )
    tensors = packed_tensors(config)
    directory = unpacked(tmp_path / "floats", config, tensors, "float32" if scale_per == "tensor" else "float16")
    artifact, lines = opened(directory, activation_bits="auto")
    assert (artifact.config, artifact.kind) == (config, "packed")
    assert list(artifact.tensors) == [tensor.name for tensor in artifact.stored] == list(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(artifact.tensors[name], tensor, err_msg=name)
    assert len(lines) == 1 and "activations are read as floats, since nothing in its files names" in lines[0]


def test_a_matrix_is_never_read_whole(tmp_path, monkeypatch):
    directory = unpacked(tmp_path / "floats", GROUPED, packed_tensors(GROUPED))
    artifact = open_model(directory, log=lambda line: None)
    monkeypatch.setattr(as_ternary, "_PIECE", 1024)
    monkeypatch.setattr(type(artifact.tensors), "__getitem__", lambda self, name: pytest.fail(name))
    up = next(parameter for parameter in parameters(GROUPED) if parameter.name.endswith("up_proj.weight"))
    assert [block.shape for block in as_ternary.row_blocks(artifact, up)] == [(8, 128)] * 32


def test_a_ternary_model_that_is_read_as_dense_is_told(tmp_path):
    directory = unpacked(tmp_path / "floats", GROUPED, packed_tensors(GROUPED))
    artifact, (line,) = opened(directory)
    assert artifact.config.linear == "dense"
    assert "its weights are ternary (group:64, by the first rows)" in line
    assert f"`jaxlm convert {directory} DIR --as ternary`" in line


def test_what_is_named_is_used_or_refused(tmp_path):
    config = dataclasses.replace(GROUPED, scale_per="group:128")
    directory = unpacked(tmp_path / "floats", config, packed_tensors(config))
    artifact, lines = opened(directory, scale_per="group:64", activation_bits=8)
    assert (artifact.config.scale_per, artifact.config.activation_bits, lines) == ("group:64", 8, [])
    assert artifact.tensors[scale_name(Q)].shape == (128, 2)
    with pytest.raises(ValueError, match=r"found ternary weights with scales per group:128, expected row"):
        opened(directory, scale_per="row")


def test_rounded_floats_are_read_and_told(tmp_path):
    config = dataclasses.replace(GROUPED, embedding="float")
    tensors = packed_tensors(config)
    directory = unpacked(tmp_path / "floats", config, tensors)
    rng = np.random.default_rng(0)
    floats = {name: open_model(directory, log=lambda line: None).tensors[name] for name in latents()}
    noisy = {
        name: (floats[name] * (1 + rng.uniform(-(2.0**-9), 2.0**-9, floats[name].shape))).astype(ml_dtypes.bfloat16)
        for name in floats
    }
    artifact, lines = opened(write(tmp_path / "rounded", DENSE, noisy), activation_bits="none")
    np.testing.assert_array_equal(artifact.tensors[Q], tensors[Q])
    assert len(lines) == 1 and "weights were rounded after they were multiplied" in lines[0]


def test_latents_need_their_scales_and_activations(tmp_path):
    directory = write(tmp_path / "latents", DENSE, latents(ml_dtypes.bfloat16))
    assert opened(directory)[1] == []
    for reading in ({"scale_per": "tensor"}, {"activation_bits": 8}):
        with pytest.raises(ValueError, match=r"latents: --as ternary: found float weights .*--scale_per .tensor for"):
            opened(directory, **reading)
    artifact, lines = opened(directory, scale_per="tensor", activation_bits=8)
    config = artifact.config
    assert (artifact.kind, artifact.float_dtype, config.linear, config.scale_per) == (
        "latent",
        "bfloat16",
        "ternary",
        "tensor",
    )
    assert (config.activation_bits, config.scale_dtype) == (8, "float32")
    assert lines == [f"{directory}: read as latent weights, ternary per tensor, with 8-bit activations"]
    np.testing.assert_array_equal(artifact.tensors[Q], latents(ml_dtypes.bfloat16)[Q].astype(np.float32))


def test_latents_of_the_shape_of_a_preset_are_told_and_read_as_it_is(tmp_path, monkeypatch):
    artifact, _ = opened(write(tmp_path / "latents", DENSE, latents()))
    preset = dataclasses.replace(artifact.config, linear="ternary", scale_per="row")
    monkeypatch.setitem(presets.PRESETS, "mine-1b", preset)
    assert preset_of_shape(artifact.config) == "mine-1b"
    dense, (line,) = opened(tmp_path / "latents")
    assert dense.config.linear == "dense" and "it has the shape of mine-1b, a ternary model" in line
    ternary, (line,) = opened(tmp_path / "latents", activation_bits="auto")
    assert (ternary.config.scale_per, ternary.config.activation_bits) == ("row", 8)
    assert line.endswith("ternary per row, with 8-bit activations, as in mine-1b")
    # Such a family is not released as latents, and a dense model of its shape may be.
    monkeypatch.setitem(presets.PRESETS, "mine-1b", dataclasses.replace(preset, activation_bits=None))
    assert opened(tmp_path / "latents")[1] == []
    # A dense artifact of this project is what its config.json says.
    save_artifact(tmp_path / "ours", dense.config, "latent", dense.tensors.__getitem__)
    assert opened(tmp_path / "ours")[1] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weight: np.sign(weight), "not ternary: binary"),
        (lambda weight: np.clip(np.round(weight), -2, 1), "not ternary: quantized to 4 levels"),
    ],
)
def test_other_families_are_named(tmp_path, change, message):
    tensors = latents()
    changed = {p.name: change(tensors[p.name]) for p in parameters(GROUPED) if p.name.endswith("_proj.weight")}
    directory = write(tmp_path / "other", DENSE, tensors | changed)
    with pytest.raises(ValueError, match=message):
        opened(directory, scale_per="tensor", activation_bits=8)


def test_a_model_that_is_ternary_in_part_or_already_is_refused(tmp_path):
    config = dataclasses.replace(GROUPED, embedding="float")
    directory = unpacked(tmp_path / "floats", config, packed_tensors(config))
    floats = dict(open_model(directory, log=lambda line: None).tensors)
    up = "model.layers.1.mlp.up_proj.weight"
    part = write(tmp_path / "part", DENSE, floats | {up: latents()[up]})
    with pytest.raises(ValueError, match=f"{up}: found weights that are not ternary: dense"):
        opened(part, activation_bits="none")
    content = json.loads((directory / "config.json").read_text())
    content["quantization_config"] = {
        "quant_method": "bitnet",
        "linear_class": "autobitlinear",
        "quantization_mode": "online",
    }
    (directory / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"floats: --as ternary: found a model that is ternary already"):
        opened(directory, activation_bits="none")
