"""Our model computes the logits that transformers computed, which are committed here; no torch is needed."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.load import load_model
from jaxlm.model.language_model import LanguageModel
from jaxlm.ops.ternary_linear import Params
from tests.golden.golden_models import (
    CASES,
    GOLDENS_FILE,
    TERNARY_BFLOAT16,
    golden_token_ids,
    golden_weights,
    parity_error,
    weights_sha256,
    write_golden_artifact,
)

GOLDENS = json.loads(GOLDENS_FILE.read_text("utf-8"))["cases"]
ADVICE = (
    "The model no longer computes what transformers computed from the same file. If you did not mean to "
    "change the model's numbers, this is a bug. If you did, run "
    "`python -m tests.golden.make_transformers_goldens` and say why in the commit."
)


def our_logits(config: ModelConfig, params: Params) -> np.ndarray:
    token_ids = jnp.asarray(golden_token_ids(config))
    return np.asarray(jax.jit(LanguageModel(config).apply)({"params": params}, token_ids))


def golden_error(case: str, config: ModelConfig, params: Params) -> str | None:
    expected = np.array(GOLDENS[case]["logits"], np.float32)
    return parity_error(our_logits(config, params), expected, config.is_ternary)


@pytest.mark.parametrize("case", CASES)
def test_the_weights_are_those_of_the_goldens(case: str):
    found = weights_sha256(golden_weights(CASES[case][0]))
    assert found == GOLDENS[case]["weights_sha256"], (
        "The recipe gives other weights than those the goldens were made with: golden_models.py or "
        "jaxlm.common.architecture.parameters changed, not the model. Restore it, or make the goldens again."
    )


@pytest.mark.parametrize("case", CASES)
def test_the_logits_are_those_of_transformers(tmp_path: Path, case: str):
    config, kind = CASES[case]
    write_golden_artifact(tmp_path / "artifact", config, kind)
    model, params, _ = load_model(tmp_path / "artifact")
    assert model.config == config
    error = golden_error(case, config, params)
    assert error is None, f"{error}\n{ADVICE}"


def test_the_model_in_training_is_the_one_transformers_runs_from_the_packed_file(tmp_path: Path):
    write_golden_artifact(tmp_path / "artifact", TERNARY_BFLOAT16, "latent")
    _, params, _ = load_model(tmp_path / "artifact")
    error = golden_error("ternary_bitnet_packed", TERNARY_BFLOAT16, params)
    assert error is None, f"{error}\n{ADVICE}"


@pytest.mark.parametrize(
    ("case", "change"),
    [
        ("dense_llama", {"norm_eps": 1e-6}),
        ("dense_llama", {"rope_theta": 510.0}),
        ("ternary_bitnet_latent", {"norm_eps": 1e-6}),
        ("ternary_bitnet_latent", {"scale_dtype": "bfloat16"}),
    ],
)
def test_a_small_change_of_the_model_is_noticed(tmp_path: Path, case: str, change: dict):
    config, kind = CASES[case]
    write_golden_artifact(tmp_path / "artifact", config, kind)
    _, params, _ = load_model(tmp_path / "artifact")
    assert golden_error(case, replace(config, **change), params) is not None


def test_a_scale_off_by_half_a_percent_is_noticed(tmp_path: Path):
    write_golden_artifact(tmp_path / "artifact", TERNARY_BFLOAT16, "packed")
    _, params, _ = load_model(tmp_path / "artifact")
    flat = flatten_dict(params)
    path = ("layers", "mlp", "down_proj", "weight")
    flat[path] = flat[path].replace(scale=flat[path].scale * 1.005)
    assert golden_error("ternary_bitnet_packed", TERNARY_BFLOAT16, unflatten_dict(flat)) is not None
