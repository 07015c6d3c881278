"""Losses of models with repeatable weights on a text: written once, found again by JAX and by MLX.

A change of tokenizer, windows, masks or model that moves both frameworks together is seen here alone.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import jaxlm.evaluate
import mlxlm.evaluate
from jaxlm.checkpoints.weights import artifact_params
from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.artifact.artifact import save_artifact
from jaxlm.common.formats.open_model import open_model
from jaxlm.model.language_model import LanguageModel
from mlxlm.load import load_model
from shared_tokenizer.data.evaluation import Evaluation
from shared_tokenizer.tokenizers.tokenizer import Tokenizer
from tests.golden.golden_models import DENSE, TERNARY, golden_weights

GOLDEN = Path(__file__).with_name("text_losses.json")
CONFIGS = {"dense": replace(DENSE, vocab_size=300), "ternary": replace(TERNARY, vocab_size=300)}
TEXTS = ["def add(a, b):\n    return a + b\n" * 4, "add(a, b)", "two caf\u00e9s, b\n", "x = 1\ny = 22\n" * 9]
SEQ_LEN, BATCH_SIZE = 48, 3
# In nats per token. Sums in another order are 1e-6 apart. One activation of a ternary model that is pushed over a
# rounding border moves a token by up to 3e-2, one of some two hundred.
TOLERANCES = {"dense": 2e-5, "ternary": 2e-3}


def save_golden(directory: Path, config: ModelConfig) -> Path:
    """Return a latent artifact with golden weights."""
    save_artifact(directory, config, "latent", golden_weights(config).__getitem__)
    return directory


def jax_loss(path: Path, tokenizer: Tokenizer) -> Evaluation:
    """Return the loss of an artifact on the texts, by JAX."""
    artifact = open_model(path)
    model = LanguageModel(artifact.config)
    return jaxlm.evaluate.evaluate_text(model, artifact_params(artifact), tokenizer, TEXTS, SEQ_LEN, BATCH_SIZE)


def as_json(found: Evaluation) -> dict[str, float]:
    """Return the numbers that the golden holds."""
    return {"nats_per_token": found.loss, "bits_per_byte": found.bits_per_byte, "tokens": found.tokens}


@pytest.mark.parametrize("name", CONFIGS)
def test_they_are_found_again_in_both_frameworks(name, tokenizer, tmp_path):
    expected, tolerance = json.loads(GOLDEN.read_text("utf-8"))[name], TOLERANCES[name]
    path = save_golden(tmp_path / name, CONFIGS[name])
    theirs = mlxlm.evaluate.evaluate_text(load_model(path)[0], tokenizer, TEXTS, SEQ_LEN, BATCH_SIZE)
    for found in (jax_loss(path, tokenizer), theirs):
        assert found.tokens == expected["tokens"] and found.unknown == 0
        assert found.loss == pytest.approx(expected["nats_per_token"], abs=tolerance)
        assert found.bits_per_byte == pytest.approx(expected["bits_per_byte"], abs=tolerance)
