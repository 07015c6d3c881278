"""Directories that transformers wrote, opened here: they compute what transformers computes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from transformers.integrations import bitnet

from jaxlm.checkpoints.export import stored_tensor_reader
from jaxlm.checkpoints.weights import tree_weights
from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.artifact.artifact import save_artifact
from jaxlm.common.formats.dequantized import write_dequantized
from jaxlm.common.formats.open_model import open_model
from jaxlm.load import load_model
from jaxlm.model.language_model import LanguageModel
from tests.golden.golden_models import TERNARY, golden_token_ids, golden_weights, parity_error
from tests.witness.transformers_models import load_in_transformers, transformers_logits

SIZES = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"},
    "initializer_range": 0.035,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA = transformers.LlamaConfig(**SIZES)
BITNET = transformers.BitNetConfig(**SIZES)


def save_random(directory: Path, config: transformers.PreTrainedConfig, dtype: torch.dtype = torch.float32) -> None:
    """A random model, written by transformers; its norms and matrices differ in size, as they do after training."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(".bias"):
                weight.uniform_(-0.5, 0.5)
            weight.mul_(0.5 + torch.rand(weight.shape[:1]).reshape(-1, *[1] * (weight.ndim - 1)))
    model.to(dtype).save_pretrained(directory)


def quantize_from_now_on(directory: Path, **quantization: Any) -> None:
    """Make its linears ternary when transformers loads it."""
    content = json.loads((directory / "config.json").read_text())
    content["quantization_config"] = {"quant_method": "bitnet", "modules_to_not_convert": ["lm_head"]} | quantization
    (directory / "config.json").write_text(json.dumps(content))


def ternarize_in_place(directory: Path, inverted: bool, packed: bool) -> None:
    """Make its linears codes, packed with transformers' own function or not, and scales g, or 1 / g."""
    tensors = safetensors.torch.load_file(directory / "model.safetensors")
    for name in [name for name in tensors if "_proj." in name]:
        inverse = 1 / tensors[name].abs().mean()
        codes = (tensors[name] * inverse).round().clamp(-1, 1)
        tensors[name] = bitnet.pack_weights(codes) if packed else codes
        tensors[f"{name}_scale"] = (inverse if inverted else 1 / inverse).reshape(1)
    safetensors.torch.save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def assert_parity(directory: Path, theirs: torch.nn.Module) -> ModelConfig:
    """The directory, opened here, gives the logits of a model of transformers."""
    model, params, _ = load_model(directory)
    token_ids = golden_token_ids(model.config, 4, 16)
    found = np.asarray(LanguageModel(model.config).apply({"params": params}, token_ids))
    error = parity_error(found, transformers_logits(theirs, token_ids), model.config.is_ternary)
    assert error is None, error
    return model.config


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("changes", [{"tie_word_embeddings": True}, {"tie_word_embeddings": False, "head_dim": 32}])
def test_llama_agrees(tmp_path: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, Any], dtype: torch.dtype):
    save_random(tmp_path, transformers.LlamaConfig(**SIZES | changes), dtype)
    config = assert_parity(tmp_path, load_in_transformers(tmp_path, caplog))
    assert config.linear == "dense" and config.tie_word_embeddings == changes["tie_word_embeddings"]


@pytest.mark.parametrize("architecture", [LLAMA, BITNET])
def test_latent_ternary_models_agree(tmp_path: Path, caplog: pytest.LogCaptureFixture, architecture: Any):
    save_random(tmp_path / "plain", architecture)
    quantize_from_now_on(tmp_path / "plain", linear_class="autobitlinear", quantization_mode="online")
    theirs = load_in_transformers(tmp_path / "plain", caplog)
    theirs.save_pretrained(tmp_path / "online")
    config = assert_parity(tmp_path / "online", theirs)
    assert (config.linear, config.sub_norm) == ("ternary", architecture is BITNET)


@pytest.mark.parametrize("architecture", [LLAMA, BITNET])
@pytest.mark.parametrize(
    ("linear_class", "packed"), [("bitlinear", True), ("autobitlinear", True), ("autobitlinear", False)]
)
def test_packed_models_agree(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, architecture: Any, linear_class: str, packed: bool
):
    save_random(tmp_path, architecture)
    ternarize_in_place(tmp_path, linear_class == "bitlinear", packed)
    quantize_from_now_on(tmp_path, linear_class=linear_class)
    assert_parity(tmp_path, load_in_transformers(tmp_path, caplog))
    assert open_model(tmp_path).kind == "packed"


def test_a_bitnet_without_quantization_is_dense_there_and_here(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    save_random(tmp_path, BITNET)
    assert assert_parity(tmp_path, load_in_transformers(tmp_path, caplog)).linear == "dense"


@pytest.mark.parametrize("sub_norm", [True, False])
def test_dequantized_models_load_and_compute_with_float_activations(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, sub_norm: bool
):
    config = replace(TERNARY, sub_norm=sub_norm, scale_dtype="bfloat16", bos_id=1, eos_id=2)
    (tmp_path / "dequantized").mkdir()
    save_artifact(tmp_path / "latent", config, "latent", golden_weights(config).__getitem__)
    _, params, _ = load_model(tmp_path / "latent")
    write_dequantized(tmp_path / "dequantized", config, stored_tensor_reader(tree_weights(params), config, "packed"))
    theirs = load_in_transformers(tmp_path / "dequantized", caplog)
    assert (theirs.generation_config.bos_token_id, theirs.generation_config.eos_token_id) == (1, 2)
    assert assert_parity(tmp_path / "dequantized", theirs).linear == "dense"
