"""Low-rank adapters (LoRA, arXiv 2106.09685) on the linear layers of a model."""

import hashlib
import json
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.tuner.utils import linear_to_lora_layers

from jaxlm.common.architecture.config import recorded_fields
from mlxlm.adapters.adapter_config import AdapterConfig
from mlxlm.model.language_model import LanguageModel
from mlxlm.model.layers import BitLinear
from mlxlm.model.trees import flat_arrays


def add_adapters(model: LanguageModel, config: AdapterConfig) -> AdapterConfig:
    """Add new adapters, which do not change the output yet, to linear layers of a model, and freeze everything else.

    Return the resolved config (see `resolve_config`). Raises ValueError if the model has no such layer, or if a layer
    is smaller than the rank; then the model is unchanged.
    """
    config = resolve_config(model, config)
    for path, shape in adapted_layers(model, config).items():
        if config.rank > min(shape):
            raise ValueError(
                f"rank: found {config.rank}, expected at most {min(shape)}, the smaller side of {path} {list(shape)}"
            )
    model.freeze()
    linear_to_lora_layers(model, config.num_layers, config.lora_parameters)
    return config


def resolve_config(model: LanguageModel, config: AdapterConfig) -> AdapterConfig:
    """Return the config with every layer's path in its block, and the number of blocks, written out.

    Raises ValueError if the model has no such layer, or fewer blocks.
    """
    total = len(model.layers)
    if config.num_layers > total:
        raise ValueError(f"num_layers: found {config.num_layers}, expected at most the model's {total}")
    num_layers = config.num_layers or total
    paths = {path for block in model.layers[-num_layers:] for path in _block_linears(block)}
    keys: set[str] = set()
    for key in config.keys or paths:
        matching = {path for path in paths if path == key or path.endswith(f".{key}")}
        if not matching:
            raise ValueError(f"keys: found {key!r}, expected linear layers of the blocks: {', '.join(sorted(paths))}")
        keys |= matching
    return replace(config, keys=tuple(sorted(keys)), num_layers=num_layers)


def adapted_layers(model: LanguageModel, config: AdapterConfig) -> dict[str, tuple[int, int]]:
    """Return the shape (out, in) of every layer that a resolved config names, by path in the model."""
    first = len(model.layers) - config.num_layers
    return {
        f"layers.{number}.{path}": shape
        for number, block in enumerate(model.layers[first:], first)
        for path, shape in _block_linears(block).items()
        if path in config.keys
    }


def _block_linears(block: nn.Module) -> dict[str, tuple[int, int]]:
    """Return the shape (out, in) of every linear layer, by its path in the block."""
    shapes = {}
    for path, module in block.named_modules():
        if isinstance(module, BitLinear):
            shapes[path.removesuffix(".linear")] = (module.weight.shape[0], module.in_features)
        elif isinstance(module, nn.Linear):
            shapes[path.removesuffix(".linear")] = (module.weight.shape[0], module.weight.shape[1])
    return shapes


def base_fingerprint(model: LanguageModel) -> str:
    """Return the sha256 of a model without its adapters, the same for its latent and its packed form.

    Floats are hashed as bfloat16, so that a copy rounded to it has the same fingerprint.
    """
    digest = hashlib.sha256(json.dumps(recorded_fields(model.config), sort_keys=True).encode())
    for path, array in sorted(flat_arrays(model.parameters()).items()):
        if path.rpartition(".")[2] in ("lora_a", "lora_b"):
            continue
        if mx.issubdtype(array.dtype, mx.floating):
            array = array.astype(mx.bfloat16).view(mx.uint16)
        digest.update(f"{path.replace('.linear.', '.')} {array.shape} ".encode())
        digest.update(np.array(array).tobytes())
    return digest.hexdigest()
