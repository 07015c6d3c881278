"""The released MatMul-free models: names, config, and an independent model written from the equations alone."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
import safetensors.numpy

import jaxlm.load
import mlxlm.load
from jaxlm.checkpoints.export import export_artifact
from jaxlm.common.architecture.mmfreelm import from_released, is_mmfreelm, to_released
from jaxlm.common.architecture.parameters import parameter_count, parameters
from jaxlm.common.architecture.presets import preset
from jaxlm.common.artifact.artifact import load_artifact
from jaxlm.common.artifact.safetensors import TensorFile
from jaxlm.common.formats.open_model import open_model
from jaxlm.model.language_model import init_params
from shared_tokenizer.manifest import MANIFEST, write_manifest

RELEASED = {
    "architectures": ["HGRNBitForCausalLM"],
    "model_type": "hgrn_bit",
    "attn_mode": "fused_recurrent",
    "hidden_ratio": 4,
    "hidden_act": "swish",
    "intermediate_size": None,
    "share_conv_kernel": True,
    "conv_size": 4,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "vocab_size": 32000,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "rms_norm_eps": 1e-6,
    "torch_dtype": "float32",
    "transformers_version": "4.40.0",
}


@pytest.fixture
def config(tiny_config):
    fields = to_released(preset("mmfree-370m")) | {"hidden_size": 32, "num_hidden_layers": 3, "vocab_size": 300}
    return dataclasses.replace(from_released(fields | {"intermediate_size": 64}), max_seq_len=64, initializer_range=0.1)


@pytest.fixture
def params(config):
    tree = jax.jit(init_params, static_argnums=0)(config, jax.random.key(0))
    rng = np.random.default_rng(0)
    # Norms and lower bounds differ from their initial values, so that an error in one of them shows.
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            leaf + np.float32(0.3) * rng.standard_normal(leaf.shape).astype(np.float32)
            if "norm" in str(path) or "lower_bounds" in str(path)
            else leaf
        ),
        tree,
    )


@pytest.mark.parametrize(("name", "millions"), [("mmfree-370m", 374), ("mmfree-1.3b", 1365), ("mmfree-2.7b", 2702)])
def test_presets_have_the_released_shapes(name, millions):
    config = preset(name)
    assert is_mmfreelm(config)
    assert round(parameter_count(config) / 1e6) == millions


def test_a_released_config_is_read(tmp_path):
    config = from_released(RELEASED)
    assert dataclasses.replace(config, scale_dtype="bfloat16") == preset("mmfree-370m")
    for change, message in (
        ({"use_short_conv": True}, "use_short_conv: found True, expected False"),
        ({"num_heads": 2}, "num_heads: found 2, expected 1"),
        ({"new_key": 1}, "unknown key 'new_key' with value 1"),
        ({"hidden_size": None}, "missing hidden_size, intermediate_size"),
    ):
        with pytest.raises(ValueError, match=message):
            from_released(RELEASED | change)


def rms_norm(x, weight):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-6) * weight


def silu(x):
    return x / (1 + np.exp(-x))


def bit_linear(tensors, name, x):
    """Compute a norm, int8 activations per token, and a product with ternary weights per matrix."""
    x = rms_norm(x, tensors[f"{name}.norm.weight"])
    scale = 127 / np.maximum(np.abs(x).max(axis=-1, keepdims=True), 1e-5)
    x = np.clip(np.round(x * scale), -128, 127) / scale
    weight = tensors[f"{name}.weight"]
    mean = max(np.abs(weight).mean(), 1e-5)
    return x @ (np.clip(np.round(weight / mean), -1, 1) * mean).T


def independent_logits(tensors, token_ids, num_layers):
    """Return logits in float64, computed token by token, with no fused operation."""
    shares = np.exp(tensors["model.lower_bounds"])
    shares /= shares.sum(axis=0)
    bounds = np.cumsum(shares, axis=0) - shares[0]
    x = tensors["model.embeddings.weight"][token_ids]
    for layer in range(num_layers):
        prefix = f"model.layers.{layer}"
        normed = rms_norm(x, tensors[f"{prefix}.attn_norm.weight"])
        i, f, g = (bit_linear(tensors, f"{prefix}.attn.{name}_proj", normed) for name in "ifg")
        f = 1 / (1 + np.exp(-f))
        f = bounds[layer] + (1 - bounds[layer]) * f
        update, state, states = silu(i) * (1 - f), 0, []
        for step in range(x.shape[0]):
            state = f[step] * state + update[step]
            states.append(state)
        o = rms_norm(g, tensors[f"{prefix}.attn.g_norm.weight"]) * silu(np.stack(states))
        x = x + bit_linear(tensors, f"{prefix}.attn.o_proj", o)
        inner = bit_linear(tensors, f"{prefix}.mlp.gate_proj", rms_norm(x, tensors[f"{prefix}.mlp_norm.weight"]))
        gate, value = np.split(inner, 2, axis=-1)
        x = x + bit_linear(tensors, f"{prefix}.mlp.down_proj", silu(gate) * value)
    return bit_linear(tensors, "lm_head", rms_norm(x, tensors["model.norm.weight"]))


def test_the_written_model_follows_the_equations(config, params, tmp_path):
    export_artifact(tmp_path / "latent", config, params, "latent")
    tensors = {
        name: np.asarray(t, np.float64) for name, t in TensorFile(tmp_path / "latent" / "model.safetensors").items()
    }
    token_ids = np.random.default_rng(1).integers(0, 300, 40)
    expected = independent_logits(tensors, token_ids, config.num_layers)
    model, tree, _ = jaxlm.load.load_model(tmp_path / "latent")
    found = np.asarray(jax.jit(model.apply)({"params": tree}, token_ids[None]))[0]
    difference = np.abs(found - expected).max(axis=-1)
    # One activation that rounds to its other neighbour changes all later tokens; most tokens have none.
    assert np.median(difference) < 1e-4 and difference.max() < 3e-2 * np.abs(expected).max()


def test_lower_bounds_of_the_wrong_shape_are_refused(config, params, tmp_path):
    directory = tmp_path / "latent"
    export_artifact(directory, config, params, "latent")
    tensors = {name: np.array(t) for name, t in TensorFile(directory / "model.safetensors").items()}
    tensors["model.lower_bounds"] = tensors["model.lower_bounds"][:-1]
    safetensors.numpy.save_file(tensors, directory / "model.safetensors")
    write_manifest(directory)
    found, expected = ([layers, config.hidden_size] for layers in (config.num_layers - 1, config.num_layers))
    message = f"model.lower_bounds: found float32 {found}, expected float32 {expected}"
    with pytest.raises(ValueError, match=re.escape(message)):
        load_artifact(directory)


def test_released_directories_are_read_and_written_names_are_theirs(config, params, tmp_path):
    export_artifact(tmp_path / "latent", config, params, "latent")
    names = {parameter.name for parameter in parameters(config)}
    assert {"model.embeddings.weight", "model.lower_bounds", "lm_head.norm.weight", "model.norm.weight"} <= names
    assert {f"model.layers.0.attn.{name}" for name in ("i_proj.weight", "i_proj.norm.weight", "g_norm.weight")} <= names
    assert {f"model.layers.0.mlp.{name}" for name in ("gate_proj.weight", "down_proj.norm.weight")} <= names
    content = json.loads((tmp_path / "latent" / "config.json").read_text())
    assert content["model_type"] == "hgrn_bit" and content["architectures"] == ["HGRNBitForCausalLM"]
    # The released form: without our own object, without a manifest.
    theirs = {key: value for key, value in content.items() if key not in ("jaxlm", "quantization_config")}
    (tmp_path / "latent" / "config.json").write_text(json.dumps(theirs))
    with pytest.raises(ValueError, match=r"config\.json: damaged"):
        open_model(tmp_path / "latent")
    (tmp_path / "latent" / MANIFEST).unlink()
    artifact = open_model(tmp_path / "latent")
    assert (artifact.config, artifact.kind) == (config, "latent")
    export_artifact(tmp_path / "packed", config, params, "packed")
    token_ids = np.arange(20)[None]
    logits = []
    for kind in ("latent", "packed"):
        model, tree, _ = jaxlm.load.load_model(tmp_path / kind)
        logits.append(np.asarray(jax.jit(model.apply)({"params": tree}, token_ids)))
        in_mlx = np.array(mlxlm.load.load_model(tmp_path / kind)[0](mlxlm.load.mx.array(token_ids)))
        assert np.abs(in_mlx - logits[-1]).max() < 3e-2
    np.testing.assert_array_equal(*logits)
