"""Open a model for use from JAX: a run directory, or what `open_model` opens."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from jaxlm.checkpoint import restore_params
from jaxlm.layers import QuantizedRows
from jaxlm.model import LanguageModel, init_params
from jaxlm.run_directory import read_config
from jaxlm.spec.artifact import Artifact
from jaxlm.spec.config import ModelConfig, config_from_dict
from jaxlm.spec.names import Parameter, parameters, scale_name
from jaxlm.spec.open_model import open_model
from jaxlm.spec.run.run_directory import RunDirectory, is_run_directory
from jaxlm.spec.ternary import unpack
from jaxlm.ternary_linear import Params, TernaryWeight
from shared_tokenizer.load import find_tokenizer, load_tokenizer
from shared_tokenizer.tokenizer import Tokenizer


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


def load_run(path: Path, say: Callable[[str], None] = print) -> tuple[ModelConfig, Params]:
    """Config and latent parameters of a run's newest whole checkpoint."""
    config = config_from_dict(read_config(path)["model"])
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    _, params = restore_params(RunDirectory(path).checkpoints, shapes, say)
    return config, params


def artifact_params(artifact: Artifact) -> Params:
    """The parameter tree of an artifact: float leaves, and ternary ones where it is packed."""
    return unflatten_dict(dict(ArtifactLeaves(artifact)), sep=".")


class ArtifactLeaves(Mapping[str, Any]):
    """The leaves of an artifact's parameter tree by dotted path, read and stacked on use."""

    def __init__(self, artifact: Artifact):
        self._artifact = artifact
        self._groups: dict[str, list[Parameter]] = defaultdict(list)
        for parameter in parameters(artifact.config):
            self._groups[".".join(parameter.path)].append(parameter)

    def __getitem__(self, path: str) -> Any:
        return _leaf(self._artifact, self._groups[path])

    def __iter__(self) -> Iterator[str]:
        return iter(self._groups)

    def __len__(self) -> int:
        return len(self._groups)


def _leaf(artifact: Artifact, group: list[Parameter]) -> Any:
    """One leaf of the tree: the layers of a stacked leaf together."""
    storage = group[0].storage
    tensors = artifact.tensors

    def stack(read: Callable[[Parameter], np.ndarray]) -> jax.Array:
        if group[0].layer is None:
            return jnp.asarray(read(group[0]))
        first = read(group[0])
        stacked = np.empty((len(group), *first.shape), first.dtype)
        for parameter in group:
            stacked[parameter.layer] = read(parameter)
        return jnp.asarray(stacked)

    if artifact.kind == "latent" or storage == "float":
        return stack(lambda p: tensors[p.name])
    if storage == "int8":
        return QuantizedRows(stack(lambda p: tensors[p.name]), stack(lambda p: tensors[scale_name(p.name)]))
    codes = stack(lambda p: unpack(tensors[p.name], p.shape[0]))
    scale = stack(lambda p: tensors[scale_name(p.name)].reshape(()))
    return TernaryWeight(codes, scale)
