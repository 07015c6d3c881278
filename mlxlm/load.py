"""Open a model for use from MLX: what `open_model` opens."""

from pathlib import Path

import mlx.core as mx

from jaxlm.common.artifact.artifact import Artifact
from jaxlm.common.formats.mlx import module_tensors
from jaxlm.common.formats.open_model import open_model
from mlxlm.adapters.adapters import load_adapters
from mlxlm.model.language_model import LanguageModel, held_form
from shared_tokenizer.load import find_tokenizer
from shared_tokenizer.tokenizers.tokenizer import Tokenizer


def load_model(
    path: str | Path, *, verify: bool = True, adapter_path: str | Path | None = None
) -> tuple[LanguageModel, Tokenizer | None]:
    """Model and tokenizer (None where there is none) of what `open_model` opens.

    `model(mx.array(ids))` gives logits. Ternary weights are packed to 2 bits, whichever way they are stored. The
    adapters of `adapter_path` are put beside them. Raises ValueError naming what is wrong with either.
    """
    path = Path(path)
    artifact = open_model(path, verify=verify)
    model = built_model(artifact)
    if adapter_path is not None:
        load_adapters(model, Path(adapter_path), verify=verify)
    model.eval()
    tokenizer = find_tokenizer(path, artifact.tokenizer_metadata)
    return model, tokenizer


def built_model(artifact: Artifact) -> LanguageModel:
    """The model of an artifact, its ternary weights packed to 2 bits."""
    model = LanguageModel(artifact.config)
    modules = dict(model.named_modules())
    weights: dict[str, mx.array] = {}
    for tensor in module_tensors(artifact.config, artifact.kind):
        # One at a time: latent weights are not to be in memory together.
        weights |= held_form(modules, tensor.stored.name, mx.array(tensor.encode(artifact.tensors[tensor.name])))
    model.load_weights(list(weights.items()))
    mx.eval(model.parameters())
    return model
