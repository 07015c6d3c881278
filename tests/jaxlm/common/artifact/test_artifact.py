import dataclasses
import json

import numpy as np
import pytest

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.hf_config import from_hf_config, hf_model_type, to_hf_config
from jaxlm.common.architecture.parameters import stored_tensors, tensor_bytes
from jaxlm.common.artifact.artifact import load_artifact, save_artifact, write_artifact
from jaxlm.common.artifact.model_files import INDEX
from jaxlm.common.artifact.safetensors import TensorFile, write_tensors
from shared_tokenizer.manifest import DamagedError, write_manifest
from tests.conftest import LINEAR, LLAMA3, YARN, flipped_bit


def random_reader(config: ModelConfig, kind: str, float_dtype: str = "float32"):
    """Return a reader of random tensors of the right shapes."""
    stored = {tensor.name: tensor for tensor in stored_tensors(config, kind, float_dtype)}
    rng = np.random.default_rng(0)

    def read(name):
        dtype = "float32" if stored[name].dtype == "bfloat16" else stored[name].dtype
        if dtype == "float32":
            return rng.standard_normal(stored[name].shape).astype(np.float32)
        return rng.integers(0, 3, stored[name].shape).astype(dtype) * (85 if dtype == "uint8" else 1)

    return read


@pytest.fixture
def artifact(tmp_path, tiny_config):
    save_artifact(tmp_path / "model", tiny_config, "latent", random_reader(tiny_config, "latent"))
    return tmp_path / "model"


@pytest.mark.parametrize("kind", ["latent", "packed"])
@pytest.mark.parametrize("embedding", ["float", "int8", "ternary"])
def test_a_saved_artifact_is_loaded(tmp_path, tiny_config, kind, embedding):
    config = dataclasses.replace(tiny_config, embedding=embedding)
    save_artifact(tmp_path / "model", config, kind, random_reader(config, kind))
    loaded = load_artifact(tmp_path / "model")
    assert (loaded.config, loaded.kind) == (config, kind)
    read = random_reader(config, kind)
    for tensor in stored_tensors(config, kind):
        expected = read(tensor.name)
        if tensor.dtype == "bfloat16":
            np.testing.assert_allclose(loaded.tensors[tensor.name], expected, rtol=2**-8)
        else:
            np.testing.assert_array_equal(loaded.tensors[tensor.name], expected)


def test_a_model_over_the_file_limit_is_split_with_an_index(tmp_path, tiny_config):
    (tmp_path / "model").mkdir()
    read = random_reader(tiny_config, "latent")
    write_artifact(tmp_path / "model", tiny_config, "latent", read, max_file_bytes=20_000)
    write_manifest(tmp_path / "model")
    index = json.loads((tmp_path / "model" / INDEX).read_text())
    assert index["metadata"]["total_size"] == tensor_bytes(tiny_config, "latent")
    assert len(set(index["weight_map"].values())) > 2
    assert len(load_artifact(tmp_path / "model").tensors) == len(stored_tensors(tiny_config, "latent"))
    index["weight_map"]["model.norm.weight"] = "../outside.safetensors"
    (tmp_path / "model" / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match="leads outside the directory"):
        load_artifact(tmp_path / "model", verify=False)


def test_file_size_is_the_prediction(tmp_path, tiny_config):
    save_artifact(tmp_path / "model", tiny_config, "packed", random_reader(tiny_config, "packed"))
    file = tmp_path / "model" / "model.safetensors"
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    assert file.stat().st_size - header == tensor_bytes(tiny_config, "packed")


def rewrite(artifact, tensors, read):
    (artifact / "model.safetensors").unlink()
    write_tensors(artifact / "model.safetensors", tensors, read)
    write_manifest(artifact)


def test_tensors_that_do_not_fit_are_named(artifact, tiny_config):
    tensors = stored_tensors(tiny_config, "latent")
    read = random_reader(tiny_config, "latent")
    rewrite(artifact, tensors[:-1], read)
    with pytest.raises(ValueError, match=r"missing tensor model.norm.weight, float32 \[32\]"):
        load_artifact(artifact)
    extra = dataclasses.replace(tensors[-1], name="model.bias")
    rewrite(artifact, (*tensors, extra), lambda name: read("model.norm.weight" if name == "model.bias" else name))
    with pytest.raises(ValueError, match=r"unexpected tensor model.bias"):
        load_artifact(artifact)
    short = dataclasses.replace(tensors[-1], shape=(31,))
    rewrite(artifact, (*tensors[:-1], short), lambda name: read(name)[:31] if name == short.name else read(name))
    with pytest.raises(ValueError, match=r"model.norm.weight: found float32 \[31\], expected float32 \[32\]"):
        load_artifact(artifact)


def test_any_flipped_bit_in_any_file_is_found(artifact):
    files = [path for path in artifact.iterdir() if path.stat().st_size]
    rng = np.random.default_rng(0)
    for _ in range(200):
        with flipped_bit(files, rng), pytest.raises(DamagedError):
            load_artifact(artifact)
    load_artifact(artifact)


@pytest.mark.parametrize("cut", [0, 4, 100, -1])
def test_a_truncated_file_is_refused_with_or_without_the_manifest(artifact, cut):
    file = artifact / "model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(DamagedError, match=r"model\.safetensors: damaged"):
        load_artifact(artifact)
    with pytest.raises(ValueError, match=r"model\.safetensors: not a complete safetensors file"):
        load_artifact(artifact, verify=False)


def test_a_header_that_claims_more_than_the_file_holds_is_refused(artifact):
    file = artifact / "model.safetensors"
    file.write_bytes((2**60).to_bytes(8, "little") + file.read_bytes()[8:])
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        TensorFile(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"new_key": 1}, "unknown key 'new_key' with value 1"),
        ({"hidden_act": "gelu_new"}, "activation: found 'gelu_new'"),
        ({"rms_norm_eps": None}, "norm_eps: found None"),
        ({"attention_bias": True}, "attention_bias: found True, expected False"),
        ({"jaxlm": {"format_version": 99}}, "found format_version 99, expected 1"),
        ({"jaxlm": None}, "was not written by jaxlm"),
        ({"dtype": "float16"}, "found dtype 'float16'"),
    ],
)
def test_a_config_that_was_edited_is_refused(tiny_config, change, message):
    content = to_hf_config(tiny_config, "latent", "float32")
    with pytest.raises(ValueError, match=message):
        from_hf_config(content | change)


@pytest.mark.parametrize(
    ("changes", "model_type"),
    [
        ({}, "bitnet"),
        ({"sub_norm": False}, "llama"),
        ({"sub_norm": False, "linear": "dense"}, "llama"),
        ({"linear": "dense"}, "jaxlm"),
        ({"embedding": "int8"}, "jaxlm"),
        # transformers has no key for these shapes of heads
        ({"head_dim": 32}, "jaxlm"),
        ({"sub_norm": False, "num_heads": 6, "num_kv_heads": 6, "head_dim": 8}, "jaxlm"),
        ({"tie_word_embeddings": False, "ternary_head": True}, "jaxlm"),
        ({"sub_norm": False, "qk_norm": True, "head_dim": 32, "rope_scaling": YARN}, "qwen3"),
        ({"sub_norm": False, "attention_bias": True, "rope_scaling": LINEAR}, "qwen2"),
        ({"sub_norm": False, "attention_bias": True, "head_dim": 32}, "jaxlm"),
        ({"sub_norm": False, "attention_bias": True, "qk_norm": True}, "jaxlm"),
        ({"qk_norm": True}, "jaxlm"),
        ({"sub_norm": False, "rope_scaling": LLAMA3}, "llama"),
    ],
)
def test_model_type_is_one_that_computes_the_model(tiny_config, changes, model_type):
    config = dataclasses.replace(tiny_config, **changes)
    assert hf_model_type(config) == model_type
    for kind in ("latent", "packed"):
        content = json.loads(json.dumps(to_hf_config(config, kind, "bfloat16")))
        assert from_hf_config(content) == (config, kind, "bfloat16")


def test_a_failed_save_leaves_nothing_behind(tmp_path, tiny_config):
    read = random_reader(tiny_config, "latent")

    def failing(name):
        if name == "model.norm.weight":
            return np.full(32, np.nan, np.float32)
        return read(name)

    with pytest.raises(ValueError, match=r"model.norm.weight: found a number that is not finite"):
        save_artifact(tmp_path / "model", tiny_config, "latent", failing)
    assert list(tmp_path.iterdir()) == []


def test_an_artifact_is_never_overwritten(artifact, tiny_config):
    before = (artifact / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="already exists and is not empty"):
        save_artifact(artifact, tiny_config, "latent", random_reader(tiny_config, "latent"))
    assert (artifact / "model.safetensors").read_bytes() == before


def test_bfloat16_is_rounded_to_nearest_even(tmp_path, tiny_config):
    import jax.numpy as jnp

    read = random_reader(tiny_config, "latent")
    values = {tensor.name: read(tensor.name) for tensor in stored_tensors(tiny_config, "latent")}
    save_artifact(tmp_path / "model", tiny_config, "latent", values.__getitem__, float_dtype="bfloat16")
    loaded = load_artifact(tmp_path / "model")
    for name, value in values.items():
        np.testing.assert_array_equal(loaded.tensors[name], np.asarray(jnp.asarray(value, jnp.bfloat16), np.float32))


@pytest.mark.parametrize("change", [{"num_hidden_layers": True}, {"hidden_size": -1}, {"rms_norm_eps": []}])
def test_a_wrong_value_of_the_config_is_named_with_its_file(artifact, change):
    path = artifact / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    write_manifest(artifact)
    with pytest.raises(ValueError, match=r"model/config\.json: .*found"):
        load_artifact(artifact)
