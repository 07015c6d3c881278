"""The model on disk that a run starts from instead of fresh weights, if its weights mean the same in both."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.artifact.artifact import Artifact
from jaxlm.common.formats.open_model import open_model

# Fields that may differ: these do not change what the model computes from its weights and tokens,
_UNRELATED = {"max_seq_len", "initializer_range", "embedding_range", "bos_id", "eos_id", "pad_id"}
# and these say how float weights are quantized: a ternary model may start from a dense one.
_QUANTIZATION = {"linear", "embedding", "ternary_head", "scale_dtype"}


def open_initial(path: Path, config: ModelConfig, say: Callable[[str], None]) -> Artifact:
    """Open the model on disk whose latent weights the model of `config` starts from.

    `say` logs what is quantized differently from now on. Raises ValueError where there are no latent weights, or where
    a field of the architecture differs, naming each.
    """
    artifact = open_model(path)
    if artifact.kind != "latent":
        raise ValueError(f"init_from: {path} is packed and holds no latent weights; name a latent artifact")
    there, here = dataclasses.asdict(artifact.config), dataclasses.asdict(config)
    differing = [name for name in here if here[name] != there[name] and name not in _UNRELATED]
    if other := [name for name in differing if name not in _QUANTIZATION]:
        found = ", ".join(f"{name} {there[name]!r} (here {here[name]!r})" for name in other)
        flags = " ".join(f"--model.{name} {_flag(there[name])}" for name in other)
        raise ValueError(f"init_from: {path} is another model: found {found}; train that one with {flags}")
    for name in differing:
        say(f"init_from: weights of a model with {name} {there[name]}, trained from now on with {here[name]}")
    return artifact


def _flag(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
