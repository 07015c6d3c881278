"""Open a model for use from MLX: what `open_model` opens."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from jaxlm.spec.artifact import Artifact
from jaxlm.spec.names import Parameter, parameters, scale_name
from jaxlm.spec.open_model import open_model
from jaxlm.spec.ternary import quantize_rows, quantize_weight, unpack
from mlxlm.layers import BitLinear, Embedding
from mlxlm.model import LanguageModel
from shared_tokenizer.load import has_tokenizer, load_tokenizer
from shared_tokenizer.tokenizer import Tokenizer


def load_model(path: str | Path, *, verify: bool = True) -> tuple[LanguageModel, Tokenizer | None]:
    """Model and tokenizer (None where there is none) of what `open_model` opens.

    `model(mx.array(ids))` gives logits. Ternary weights are packed to 2 bits, whichever way they are stored. Raises
    ValueError naming what is wrong with it.
    """
    path = Path(path)
    artifact = open_model(path, verify=verify)
    model = LanguageModel(artifact.config)
    for parameter in parameters(artifact.config):
        _set(model, parameter, artifact)
    mx.eval(model.parameters())
    tokenizer = load_tokenizer(path) if has_tokenizer(path) else None
    return model, tokenizer


def _set(model: LanguageModel, parameter: Parameter, artifact: Artifact) -> None:
    """Put one parameter into its place."""
    module = module_of(model, parameter)
    tensor = artifact.tensors[parameter.name]
    if parameter.storage == "float":
        module["weight"] = mx.array(tensor)
        return
    if artifact.kind == "packed":
        scale = artifact.tensors[scale_name(parameter.name)]
        codes = unpack(tensor, parameter.shape[0]) if parameter.storage == "ternary" else tensor
    elif parameter.storage == "ternary":
        codes, scale = quantize_weight(tensor, artifact.config.scale_dtype, np)
    else:
        codes, scale = quantize_rows(tensor, np)
    if isinstance(module, BitLinear):
        module.set_codes(codes, float(np.reshape(scale, ())))
    else:
        assert isinstance(module, Embedding)
        module.codes, module.scale = mx.array(codes), mx.array(np.reshape(scale, (-1, 1)))


def module_of(model: LanguageModel, parameter: Parameter) -> nn.Module:
    """The module that a parameter belongs to."""
    place: Any = model
    for key in parameter.attribute.split(".")[:-1]:
        place = place[int(key)] if key.isdigit() else getattr(place, key)
    return place
