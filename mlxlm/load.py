"""Load a model and its tokenizer into MLX, from any directory or file that `open_model` reads."""

from pathlib import Path

import mlx.core as mx

from jaxlm.common.artifact.artifact import Artifact
from jaxlm.common.formats.files_fingerprint import files_fingerprint
from jaxlm.common.formats.mlx import module_tensors
from jaxlm.common.formats.open_model import find_model_tokenizer, model_path, open_model
from mlxlm.adapters.adapter_directory import load_adapters
from mlxlm.model.language_model import LanguageModel, quantized_form
from shared_tokenizer.tokenizers.tokenizer import Tokenizer


def load_model(
    path: str | Path, *, verify: bool = True, adapter_path: str | Path | None = None
) -> tuple[LanguageModel, Tokenizer | None]:
    """Return the model and its tokenizer, or None if it has none.

    `path` is an artifact, a run directory's artifact, a transformers or MLX directory, a GGUF file (`open_model`), or
    the name of a model on the shelf.
    `model(token_ids)` returns logits `[B, L, V]` of ids `[B, L]`. Ternary weights are packed to 2 bits in memory, in
    whatever form they are stored. `adapter_path` is a directory of adapters to add. `verify=False` skips the check of
    every file's sha256. Raises ValueError if the model or the adapters are damaged, unknown, or do not fit each other.
    """
    path = Path(path)
    artifact = open_model(path, verify=verify)
    model = built_model(artifact)
    if adapter_path is not None:
        load_adapters(model, Path(adapter_path), verify=verify)
    model.eval()
    tokenizer = find_model_tokenizer(path, artifact, verify=verify)
    return model, tokenizer


def adapted(model: LanguageModel, adapter_path: str | Path) -> LanguageModel:
    """Return a model with adapters that shares the arrays of one without. Raises ValueError as `load_model` does."""
    other = LanguageModel(model.config)
    other.update(model.parameters())
    load_adapters(other, Path(adapter_path))
    mx.eval(other.parameters())
    other.eval()
    return other


def model_fingerprint(path: str | Path, adapter_path: str | Path | None = None) -> str:
    """Return the sha256, as hex, of a model, and that of its adapters after a plus sign."""
    adapters = [] if adapter_path is None else [files_fingerprint(Path(adapter_path))]
    return "+".join([files_fingerprint(model_path(Path(path))), *adapters])


def built_model(artifact: Artifact) -> LanguageModel:
    """Return the model of an artifact, with its ternary weights packed to 2 bits."""
    model = LanguageModel(artifact.config)
    modules = dict(model.named_modules())
    weights: dict[str, mx.array] = {}
    for tensor in module_tensors(artifact.config, artifact.kind):
        # One tensor at a time, so that the latent weights are never all in memory.
        weights |= quantized_form(modules, tensor.stored.name, mx.array(tensor.encode(artifact.tensors[tensor.name])))
    model.load_weights(list(weights.items()))
    mx.eval(model.parameters())
    return model
