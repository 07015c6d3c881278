"""Dense families of transformers with random weights: read here, run in JAX and MLX, and written back for others."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm.utils
import numpy as np
import pytest
import torch
import transformers
from mlx.utils import tree_flatten
from mlx_lm.models import minicpm

import jaxlm.generate
import jaxlm.load
import mlxlm.generate
import mlxlm.load
from jaxlm.common.artifact.artifact import save_artifact
from jaxlm.common.formats.open_model import open_model
from jaxlm.common.sampling import Sampling
from jaxlm.conversion.convert import Conversion, convert
from mlxlm.model.model_file import model_file_source
from tests.golden.golden_models import DENSE_MAX, golden_token_ids, golden_weights, parity_error
from tests.witness.test_hub import SIZES, save_random
from tests.witness.transformers_models import load_in_transformers, transformers_logits

LENGTH = 128
FAMILY_SIZES: dict[str, Any] = SIZES | {"max_position_embeddings": LENGTH, "initializer_range": 0.1}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 32}
LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}
FAMILIES: dict[str, tuple[type, dict[str, Any]]] = {
    "qwen3": (transformers.Qwen3Config, {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen3_yarn": (transformers.Qwen3Config, {"head_dim": 32, "rope_parameters": YARN}),
    "qwen2": (transformers.Qwen2Config, {"tie_word_embeddings": True}),
    "qwen2_yarn": (transformers.Qwen2Config, {"rope_parameters": YARN}),
    "llama3": (transformers.LlamaConfig, {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama_linear": (transformers.LlamaConfig, {"rope_parameters": LINEAR}),
    "llama_yarn": (transformers.LlamaConfig, {"rope_parameters": YARN | {"beta_fast": 8.0, "beta_slow": 2.0}}),
    # Keys of YaRN that mlx-lm ignores.
    "llama_odd_yarn": (
        transformers.LlamaConfig,
        {"rope_parameters": YARN | {"attention_factor": 1.3, "truncate": False}},
    ),
    "mistral": (transformers.MistralConfig, {"sliding_window": None, "tie_word_embeddings": True}),
    "mistral_window": (transformers.MistralConfig, {"sliding_window": LENGTH, "head_dim": 32}),
}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> tuple[str, Path, Any]:
    """The name of a family, a directory that transformers saved, and the model in transformers."""
    config_class, changes = FAMILIES[request.param]
    save_random(tmp_path / "theirs", config_class(**FAMILY_SIZES | changes))
    return request.param, tmp_path / "theirs", load_in_transformers(tmp_path / "theirs", caplog)


def greedy_in_transformers(model: Any, prompt: list[int], tokens: int) -> list[int]:
    options = {"do_sample": False, "max_new_tokens": tokens, "eos_token_id": None, "pad_token_id": 0}
    return model.generate(torch.tensor([prompt]), **options)[0, len(prompt) :].tolist()


def test_logits_and_greedy_texts_are_those_of_transformers(family: tuple[str, Path, Any]):
    name, directory, theirs = family
    model, params, _ = jaxlm.load.load_model(directory)
    in_mlx, _ = mlxlm.load.load_model(directory)
    assert (model.config.qk_norm, model.config.attention_bias) == ("qwen3" in name, "qwen2" in name)
    token_ids = golden_token_ids(model.config, 2, LENGTH)
    expected = transformers_logits(theirs, token_ids)
    for found in (np.asarray(model.apply({"params": params}, token_ids)), np.array(in_mlx(mx.array(token_ids)))):
        error = parity_error(found, expected, is_ternary=False)
        assert error is None, error
    prompt, sampling = token_ids[0, :8].tolist(), Sampling(max_tokens=64)
    text = greedy_in_transformers(theirs, prompt, 64)
    assert len(text) == 64 and len(set(text)) > 1
    assert list(jaxlm.generate.generate(model, params, prompt, sampling)) == text
    assert list(mlxlm.generate.generate(in_mlx, prompt, sampling)) == text


def test_what_is_written_back_loads_elsewhere(
    family: tuple[str, Path, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    name, directory, theirs = family
    artifact = open_model(directory)
    save_artifact(tmp_path / "ours", artifact.config, "latent", artifact.tensors.__getitem__)
    token_ids = golden_token_ids(artifact.config, 2, LENGTH)
    expected = transformers_logits(theirs, token_ids)
    again = load_in_transformers(tmp_path / "ours", caplog)
    family_type = theirs.config.model_type
    assert again.config.model_type == ("llama" if family_type == "mistral" else family_type)
    np.testing.assert_array_equal(transformers_logits(again, token_ids), expected)
    assert open_model(tmp_path / "ours").config == artifact.config
    # What transformers saves of it is read as the same model.
    again.save_pretrained(tmp_path / "again")
    assert open_model(tmp_path / "again").config == artifact.config

    needs_model_file = name == "llama_odd_yarn"
    if not needs_model_file:
        stock = mlx_lm.utils.load_model(tmp_path / "ours")[0]
        assert np.abs(np.array(stock(mx.array(token_ids))) - expected).max() < DENSE_MAX
    convert(tmp_path / "ours", tmp_path / "mlx", Conversion(form="mlx", model_file=model_file_source()))
    assert (tmp_path / "mlx" / "model.py").is_file() == needs_model_file
    served = mlx_lm.utils.load_model(tmp_path / "mlx", trust_remote_code=needs_model_file)[0]
    assert np.abs(np.array(served(mx.array(token_ids))) - expected).max() < DENSE_MAX


@pytest.mark.parametrize("family_class", [transformers.Qwen2Config, transformers.Qwen3Config])
def test_a_ternary_model_of_the_family_is_that_of_transformers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, family_class: type
):
    """Latent weights of a Qwen, ternary with int8 activations: transformers' BitLinear inside its own attention."""
    save_random(tmp_path / "theirs", family_class(**FAMILY_SIZES | {"head_dim": 16}))
    dense = open_model(tmp_path / "theirs").config
    config = dataclasses.replace(dense, linear="ternary", scale_dtype="float32", initializer_range=0.035)
    save_artifact(tmp_path / "ours", config, "latent", golden_weights(config).__getitem__)
    token_ids = golden_token_ids(config, 4, 16)
    model, params, _ = jaxlm.load.load_model(tmp_path / "ours")
    expected = transformers_logits(load_in_transformers(tmp_path / "ours", caplog), token_ids)
    error = parity_error(np.asarray(model.apply({"params": params}, token_ids)), expected, is_ternary=True)
    assert error is None, error


def test_a_minicpm_is_that_of_mlx_lm(tmp_path: Path):
    """transformers has no class for it. mlx-lm does not multiply the logits of a tied head, so this one is untied."""
    content = {key: value for key, value in FAMILY_SIZES.items() if key not in ("rope_parameters", "initializer_range")}
    content |= {"model_type": "minicpm", "rms_norm_eps": 1e-6, "rope_theta": 500.0, "tie_word_embeddings": False}
    content |= {"scale_emb": 3, "scale_depth": 1.4, "dim_model_base": 16}
    theirs = minicpm.Model(minicpm.ModelArgs.from_dict(content))
    rng = np.random.default_rng(0)
    weights = {
        name: mx.array((rng.standard_normal(array.shape) * 0.2 + name.endswith("norm.weight")).astype(np.float32))
        for name, array in tree_flatten(theirs.parameters())
    }
    theirs.load_weights(list(weights.items()))
    mx.save_safetensors(str(tmp_path / "model.safetensors"), weights)
    (tmp_path / "config.json").write_text(json.dumps(content))
    model, params, _ = jaxlm.load.load_model(tmp_path)
    in_mlx, _ = mlxlm.load.load_model(tmp_path)
    token_ids = golden_token_ids(model.config, 2, LENGTH)
    expected = np.array(theirs(mx.array(token_ids)))
    for found in (np.asarray(model.apply({"params": params}, token_ids)), np.array(in_mlx(mx.array(token_ids)))):
        error = parity_error(found, expected, is_ternary=False)
        assert error is None, error
