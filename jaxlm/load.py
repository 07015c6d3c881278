"""Open a model for use from JAX: a run directory, or any model that `open_model` opens."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.checkpoints.checkpoint import newest_complete_step, restore_params
from jaxlm.checkpoints.weights import Weights, artifact_params, artifact_weights, tree_weights
from jaxlm.common.architecture.config import ModelConfig, config_from_dict
from jaxlm.common.formats.as_ternary import TernaryReading
from jaxlm.common.formats.files_fingerprint import files_fingerprint
from jaxlm.common.formats.open_model import find_model_tokenizer, open_model
from jaxlm.common.model_name import find_model
from jaxlm.common.run.run_directory import RunDirectory, is_run_directory, read_run_config
from jaxlm.model.language_model import LanguageModel, init_params
from jaxlm.ops.ternary_linear import Params
from shared_tokenizer.load import load_tokenizer
from shared_tokenizer.tokenizers.tokenizer import Tokenizer


def load_model(
    path: str | Path, *, dtype: Any = jnp.float32, verify: bool = True, log: Callable[[str], None] = print
) -> tuple[LanguageModel, Params, Tokenizer | None]:
    """Return model, parameters and tokenizer (None where there is none) of a run directory or any other model.

    `model.apply({"params": params}, token_ids)` returns logits `[B, L, V]` for token ids `[B, L]`. `dtype` is the
    precision of activations. A run has the parameters of its newest complete checkpoint; `log` receives one line per
    damaged checkpoint. `verify=False` skips the check of every file's sha256. Raises ValueError where the model cannot
    be read.
    """
    path = find_model(path)
    if is_run_directory(path):
        config, params = load_run(path, log)
        return LanguageModel(config, dtype), params, load_tokenizer(RunDirectory(path).tokenizer, verify=verify)
    artifact = open_model(path, verify=verify)
    tokenizer = find_model_tokenizer(path, artifact, verify=verify)
    return LanguageModel(artifact.config, dtype), artifact_params(artifact), tokenizer


def open_weights(
    path: str | Path,
    *,
    verify: bool = True,
    reading: TernaryReading | None = None,
    log: Callable[[str], None] = print,
) -> tuple[ModelConfig, Weights, Tokenizer | None]:
    """Return config, weights and tokenizer of a model that `load_model` opens.

    Weights are read one at a time; only those of a run are in memory together. With `reading` a dense model is read as
    ternary (`open_model`). Raises ValueError as `load_model` does.
    """
    path = find_model(path)
    if is_run_directory(path):
        if reading is not None:
            raise ValueError(f"{path}: found a run, whose config says what is ternary; leave --as ternary out")
        config, params = load_run(path, log)
        return config, tree_weights(params), load_tokenizer(RunDirectory(path).tokenizer, verify=verify)
    artifact = open_model(path, verify=verify, reading=reading)
    tokenizer = find_model_tokenizer(path, artifact, verify=verify)
    return artifact.config, artifact_weights(artifact), tokenizer


def load_run(path: Path, log: Callable[[str], None] = print) -> tuple[ModelConfig, Params]:
    """Return the config and the latent parameters of a run's newest complete checkpoint.

    Raises ValueError where the run has none.
    """
    config = config_from_dict(read_run_config(path)["model"])
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    _, params = restore_params(RunDirectory(path).checkpoints, shapes, log)
    return config, params


def model_fingerprint(path: str | Path) -> str:
    """Return the sha256, as hex, of a model: of a run that of its newest complete checkpoint.

    Raises ValueError where the run has none.
    """
    path = find_model(path)
    if is_run_directory(path):
        checkpoints = RunDirectory(path).checkpoints
        path = checkpoints / str(newest_complete_step(checkpoints, lambda line: None))
    return files_fingerprint(path)
