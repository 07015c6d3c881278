"""Open a model for use from JAX: a run directory, or what `open_model` opens."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.checkpoints.checkpoint import restore_params
from jaxlm.checkpoints.weights import Weights, artifact_params, artifact_weights, tree_weights
from jaxlm.common.architecture.config import ModelConfig, config_from_dict
from jaxlm.common.formats.open_model import open_model
from jaxlm.common.run.run_directory import RunDirectory, is_run_directory, read_run_config
from jaxlm.model.language_model import LanguageModel, init_params
from jaxlm.ops.ternary_linear import Params
from shared_tokenizer.load import find_tokenizer, load_tokenizer
from shared_tokenizer.tokenizers.tokenizer import Tokenizer


def load_model(
    path: str | Path, *, dtype: Any = jnp.float32, verify: bool = True, say: Callable[[str], None] = print
) -> tuple[LanguageModel, Params, Tokenizer | None]:
    """Model, parameters and tokenizer (None where there is none) of a run directory, or of what `open_model` opens.

    `model.apply({"params": params}, token_ids)` gives logits `[B, L, V]`. A run gives its newest whole
    checkpoint. Raises ValueError naming what is wrong with it.
    """
    path = Path(path)
    if is_run_directory(path):
        config, params = load_run(path, say)
        return LanguageModel(config, dtype), params, load_tokenizer(RunDirectory(path).tokenizer)
    artifact = open_model(path, verify=verify)
    tokenizer = find_tokenizer(path, artifact.tokenizer_metadata)
    return LanguageModel(artifact.config, dtype), artifact_params(artifact), tokenizer


def open_weights(
    path: str | Path, *, verify: bool = True, say: Callable[[str], None] = print
) -> tuple[ModelConfig, Weights, Tokenizer | None]:
    """Config, weights and tokenizer of what `load_model` opens; only a run's weights are in memory together."""
    path = Path(path)
    if is_run_directory(path):
        config, params = load_run(path, say)
        return config, tree_weights(params), load_tokenizer(RunDirectory(path).tokenizer)
    artifact = open_model(path, verify=verify)
    tokenizer = find_tokenizer(path, artifact.tokenizer_metadata)
    return artifact.config, artifact_weights(artifact), tokenizer


def load_run(path: Path, say: Callable[[str], None] = print) -> tuple[ModelConfig, Params]:
    """Config and latent parameters of a run's newest whole checkpoint."""
    config = config_from_dict(read_run_config(path)["model"])
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    _, params = restore_params(RunDirectory(path).checkpoints, shapes, say)
    return config, params
