"""The model on disk that a run starts from instead of fresh weights (`--init_from`)."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.artifact.artifact import Artifact
from jaxlm.common.formats.open_model import open_model

# Fields that may differ. Those of the first set do not change the function that the weights compute.
_UNRELATED = {"max_seq_len", "initializer_range", "embedding_range", "bos_id", "eos_id", "pad_id"}
# Those of the second set change how latent weights are quantized: a ternary model may start from a dense one.
_QUANTIZATION = {"linear", "embedding", "ternary_head", "scale_dtype"}


def open_initial(path: Path, config: ModelConfig, log: Callable[[str], None]) -> Artifact:
    """Open the model on disk whose latent weights the model of `config` starts from.

    `log` receives one line per field of the quantization that changes. Raises ValueError where the model holds no
    latent weights, and where a field of the architecture differs, naming every such field.
    """
    artifact = open_model(path)
    if artifact.kind != "latent":
        raise ValueError(f"init_from: {path} is packed and holds no latent weights; use a latent artifact")
    source, target = dataclasses.asdict(artifact.config), dataclasses.asdict(config)
    differing = [name for name in target if target[name] != source[name] and name not in _UNRELATED]
    if architecture := [name for name in differing if name not in _QUANTIZATION]:
        found = ", ".join(f"{name} {source[name]!r} (here {target[name]!r})" for name in architecture)
        flags = " ".join(f"--model.{name} {_flag_value(source[name])}" for name in architecture)
        raise ValueError(f"init_from: {path} is another model: found {found}; to train that model, set {flags}")
    for name in differing:
        log(f"init_from: the weights are of a model with {name} {source[name]}; this run trains with {target[name]}")
    return artifact


def _flag_value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
