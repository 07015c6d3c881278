"""The model on disk that a run starts from instead of fresh weights (`--init_from`)."""

import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import numpy as np

from jaxlm.checkpoints.checkpoint import newest_complete_step, restore_params
from jaxlm.checkpoints.weights import Weights, tree_weights
from jaxlm.common.architecture.config import ModelConfig, config_from_dict, fields_of
from jaxlm.common.architecture.parameters import parameters, stored_tensors
from jaxlm.common.artifact.artifact import Artifact
from jaxlm.common.artifact.inserted_norms import with_sub_norms
from jaxlm.common.formats.open_model import open_model
from jaxlm.common.run.run_directory import RunDirectory, is_run_directory, read_run_config
from jaxlm.model.language_model import init_params

# Fields that may differ. Those of the first set do not change the function that the weights compute.
_UNRELATED = {"max_seq_len", "initializer_range", "embedding_range", "bos_id", "eos_id", "pad_id"}
# Those of the second set change how latent weights are quantized: a ternary model may start from a dense one.
_QUANTIZATION = {"linear", "embedding", "ternary_head", "scale_dtype", "scale_per", "activation_bits"}


def open_initial(
    path: Path, config: ModelConfig, log: Callable[[str], None], *, insert_sub_norm: bool = False
) -> Artifact:
    """Open the model on disk whose latent weights the model of `config` starts from; of a run its last checkpoint.

    `log` receives one line per field of the quantization that changes. With `insert_sub_norm` the model has no
    sub-norms, and the result has, of gain 1. Raises ValueError where the model holds no latent weights, and where a
    field of the architecture differs, naming every such field.
    """
    artifact = _open_run(path, log) if is_run_directory(path) else open_model(path)
    if artifact.kind != "latent":
        raise ValueError(f"init_from: {path} is packed and holds no latent weights; use a latent artifact")
    if insert_sub_norm:
        artifact = with_sub_norms(artifact)
    source, target = fields_of(artifact.config), fields_of(config)
    differing = [name for name in target if target[name] != source[name] and name not in _UNRELATED]
    if architecture := [name for name in differing if name not in _QUANTIZATION]:
        found = ", ".join(f"{name} {source[name]!r} (here {target[name]!r})" for name in architecture)
        flags = " ".join(f"--model.{name} {_flag_value(source[name])}" for name in architecture)
        raise ValueError(f"init_from: {path} is another model: found {found}; to train that model, set {flags}")
    for name in differing:
        log(f"init_from: the weights are of a model with {name} {source[name]}; this run trains with {target[name]}")
    return artifact


def initial_config(path: Path) -> ModelConfig:
    """Return the architecture of the model that a run starts from. Raises ValueError where it is no model."""
    return config_from_dict(read_run_config(path)["model"]) if is_run_directory(path) else open_model(path).config


def _flag_value(value: object) -> str:
    return shlex.quote(value if isinstance(value, str) else json.dumps(value))


def _open_run(path: Path, log: Callable[[str], None]) -> Artifact:
    """Open the newest complete checkpoint of a run as a latent artifact, whose weights are restored on first use."""
    config = config_from_dict(read_run_config(path)["model"])
    checkpoints = RunDirectory(path).checkpoints
    log(f"init_from: {path}, step {newest_complete_step(checkpoints, log)}")
    stored = tuple(stored_tensors(config, "latent", "float32"))
    return Artifact(config, "latent", "float32", _RunTensors(checkpoints, config), stored)


class _RunTensors(Mapping[str, np.ndarray]):
    """The latent weights of a run's newest complete checkpoint by name, restored together when the first is read."""

    def __init__(self, checkpoints: Path, config: ModelConfig):
        self._checkpoints, self._config = checkpoints, config
        self._parameters = {parameter.name: parameter for parameter in parameters(config)}
        self._weights: Weights | None = None

    def __getitem__(self, name: str) -> np.ndarray:
        if self._weights is None:
            shapes = jax.eval_shape(lambda: init_params(self._config, jax.random.key(0)))
            self._weights = tree_weights(restore_params(self._checkpoints, shapes, lambda line: None)[1])
        weight = self._weights(self._parameters[name])
        assert isinstance(weight, np.ndarray)
        return weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)
