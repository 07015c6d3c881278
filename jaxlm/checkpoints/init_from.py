"""The weights that a run starts from instead of fresh ones, where they mean the same in the model to train."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

from jaxlm.checkpoints.weights import artifact_params
from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.formats.open_model import open_model
from jaxlm.ops.ternary_linear import Params

# Fields that may differ. These say nothing of what the model computes from its weights and tokens,
_UNRELATED = {"max_seq_len", "initializer_range", "embedding_range", "bos_id", "eos_id", "pad_id"}
# and these what is made of float weights: a ternary model may start from a dense one.
_QUANTIZATION = {"linear", "embedding", "ternary_head", "scale_dtype"}


def initial_params(path: Path, config: ModelConfig, say: Callable[[str], None]) -> Params:
    """The latent weights of a model on disk for training the model of `config`.

    `say` is told what is quantized otherwise from now on. Raises ValueError where there are none, or where a field of
    the architecture differs, naming each.
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
    return artifact_params(artifact)


def _flag(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
