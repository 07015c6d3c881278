"""Low-rank adapters on a model, and their directory, in mlx-lm's own format.

`adapters.safetensors` and `adapter_config.json` are what `mlx_lm.lora` writes, so `--adapter-path` of stock mlx-lm
takes the directory beside the exported model. It ignores the rest: what it has no key for, in one object `jaxlm`, and
the chat template of adapters that were trained on chats.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.tuner.utils import linear_to_lora_layers

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.parameters import StoredTensor
from jaxlm.common.artifact.model_files import check_tensors, read_json_object
from jaxlm.common.artifact.safetensors import TensorFile, write_tensors
from jaxlm.common.bounds import check_bounds
from jaxlm.common.formats.mlx import needs_model_file
from mlxlm.model.language_model import LanguageModel
from mlxlm.model.layers import BitLinear
from mlxlm.model.trees import flat_arrays
from shared_tokenizer.chat.template import copy_chat_template
from shared_tokenizer.manifest import MANIFEST, sealed_directory, verify_manifest

CONFIG = "adapter_config.json"
WEIGHTS = "adapters.safetensors"
FORMAT_VERSION = 1
LORA_PARAMETERS = ("rank", "scale", "dropout", "keys")
FLOATS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Which linear layers get an adapter, and of what size. Raises ValueError on a value out of range."""

    rank: int = 8
    """Rank of every adapter."""
    scale: float = 20.0
    """What the adapter's product is multiplied by; not divided by the rank."""
    dropout: float = 0.0
    """Share of the adapter's inputs that training leaves out."""
    keys: tuple[str, ...] = ()
    """Linear layers by name, q_proj or self_attn.q_proj; none named means all of the blocks."""
    num_layers: int = 0
    """Adapt only so many of the last blocks; 0 means all."""

    def __post_init__(self) -> None:
        bounds = {
            "rank": (self.rank >= 1, "at least 1"),
            "scale": (0 < self.scale < float("inf"), "more than 0 and finite"),
            "dropout": (0 <= self.dropout < 1, "at least 0, less than 1"),
            "num_layers": (self.num_layers >= 0, "0 or more"),
        }
        check_bounds(self, bounds)


def add_adapters(model: LanguageModel, config: AdapterConfig) -> AdapterConfig:
    """Put fresh adapters, which change nothing yet, beside linear layers of a model, and freeze all else.

    Returns the config as it was applied, every layer and the number of blocks written out. Raises ValueError where the
    model has no such layer or a layer is smaller than the rank; then the model is as it was.
    """
    config = _resolved(model, config)
    for name, shape in _targets(model, config).items():
        if config.rank > min(shape):
            raise ValueError(
                f"rank: found {config.rank}, expected at most {min(shape)}, the smaller side of {name} {list(shape)}"
            )
    model.freeze()
    linear_to_lora_layers(model, config.num_layers, _lora_parameters(config))
    return config


def save_adapters(
    directory: Path, model: LanguageModel, config: AdapterConfig, tokenizer_dir: Path | None = None
) -> None:
    """Write the adapters of a model atomically; `config` is what they were added with.

    The chat template of `tokenizer_dir`, with which they were trained, is kept beside them if there is one.
    Raises ValueError where the place is taken or a number is not finite; then nothing is left behind.
    """
    config = _resolved(model, config)
    content = {
        "fine_tune_type": "lora",
        "num_layers": config.num_layers,
        "lora_parameters": _lora_parameters(config),
        "jaxlm": {"format_version": FORMAT_VERSION, "base_fingerprint": base_fingerprint(model)},
    }
    held = flat_arrays(model.parameters())
    tensors = _stored(model, config)
    with sealed_directory(directory) as temporary:
        (temporary / CONFIG).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
        prefix = _prefix(model.config)
        write_tensors(temporary / WEIGHTS, tensors, lambda name: np.array(held[name.removeprefix(prefix)]))
        if tokenizer_dir is not None:
            copy_chat_template(tokenizer_dir, temporary)


def load_adapters(model: LanguageModel, directory: Path, *, verify: bool = True) -> AdapterConfig:
    """Add the adapters of a directory to the model that they were trained on, and return their config.

    `verify=False` skips the check of every file's sha256. Adapters that mlx-lm trained have neither a manifest nor a
    record of their model. Raises ValueError where the directory is not whole, or belongs to another model, or a tensor
    is not what its config says; then the model is as it was.
    """
    directory = Path(directory)
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).is_file():
            raise ValueError(f"{directory}: found no {name}, expected a directory of adapters")
    content = read_json_object(directory / CONFIG)
    if verify and ("jaxlm" in content or (directory / MANIFEST).is_file()):
        verify_manifest(directory)
    _check_base(directory, model, content)
    try:
        config = _resolved(model, _parse(content, model.config.num_layers))
    except ValueError as error:
        raise ValueError(f"{directory / CONFIG}: {error}") from error
    file = TensorFile(directory / WEIGHTS)
    found = {name: file.stored(name) for name in file}
    check_tensors(directory, found, _stored(model, config), _fits)
    config = add_adapters(model, config)
    prefix = _prefix(model.config)
    model.load_weights([(name.removeprefix(prefix), mx.array(file[name])) for name in file], strict=False)
    mx.eval(model.trainable_parameters())
    return config


def base_fingerprint(model: LanguageModel) -> str:
    """sha256 of a model without its adapters, the same for its latent and its packed form.

    Floats count as bfloat16, so that a copy rounded to it is the same model.
    """
    digest = hashlib.sha256(json.dumps(asdict(model.config), sort_keys=True).encode())
    for path, array in sorted(flat_arrays(model.parameters()).items()):
        if path.rpartition(".")[2] in ("lora_a", "lora_b"):
            continue
        if mx.issubdtype(array.dtype, mx.floating):
            array = array.astype(mx.bfloat16).view(mx.uint16)
        digest.update(f"{path.replace('.linear.', '.')} {array.shape} ".encode())
        digest.update(np.array(array).tobytes())
    return digest.hexdigest()


def _block_linears(block: nn.Module) -> dict[str, tuple[int, int]]:
    """Shape (out, in) of every linear layer, by its path in the block."""
    found = {}
    for path, module in block.named_modules():
        if isinstance(module, BitLinear):
            found[path.removesuffix(".linear")] = (module.weight.shape[0], module.in_features)
        elif isinstance(module, nn.Linear):
            found[path.removesuffix(".linear")] = (module.weight.shape[0], module.weight.shape[1])
    return found


def _resolved(model: LanguageModel, config: AdapterConfig) -> AdapterConfig:
    """The config with every layer's path in its block and the number of blocks written out."""
    total = len(model.layers)
    if config.num_layers > total:
        raise ValueError(f"num_layers: found {config.num_layers}, expected at most the model's {total}")
    num_layers = config.num_layers or total
    there = {path for block in model.layers[-num_layers:] for path in _block_linears(block)}
    keys: set[str] = set()
    for key in config.keys or there:
        matching = {path for path in there if path == key or path.endswith(f".{key}")}
        if not matching:
            raise ValueError(f"keys: found {key!r}, expected linear layers of the blocks: {', '.join(sorted(there))}")
        keys |= matching
    return replace(config, keys=tuple(sorted(keys)), num_layers=num_layers)


def _targets(model: LanguageModel, config: AdapterConfig) -> dict[str, tuple[int, int]]:
    """Shape (out, in) of the layers that a resolved config names, by path in the model."""
    first = len(model.layers) - config.num_layers
    return {
        f"layers.{number}.{path}": shape
        for number, block in enumerate(model.layers[first:], first)
        for path, shape in _block_linears(block).items()
        if path in config.keys
    }


def _lora_parameters(config: AdapterConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in LORA_PARAMETERS}


def _prefix(config: ModelConfig) -> str:
    """What mlx-lm puts before the name of a block's parameter: its own Llama keeps the blocks in `model`."""
    return "" if needs_model_file(config) else "model."


def _stored(model: LanguageModel, config: AdapterConfig) -> list[StoredTensor]:
    """The tensors of the adapters of a resolved config."""
    prefix = _prefix(model.config)
    return [
        StoredTensor(f"{prefix}{name}.{part}", shape, "float32")
        for name, (rows, columns) in _targets(model, config).items()
        for part, shape in (("lora_a", (columns, config.rank)), ("lora_b", (config.rank, rows)))
    ]


def _fits(found: StoredTensor, expected: StoredTensor) -> bool:
    return found.shape == expected.shape and found.dtype in FLOATS


def _check_base(directory: Path, model: LanguageModel, content: Mapping[str, Any]) -> None:
    """Raise ValueError where adapters say that they belong to another model."""
    own = content.get("jaxlm")
    if own is None:
        return
    if not isinstance(own, dict) or own.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"{directory / CONFIG}: jaxlm: found {own!r}, expected format_version {FORMAT_VERSION}")
    expected = base_fingerprint(model)
    if (found := own.get("base_fingerprint")) != expected:
        raise ValueError(
            f"{directory}: adapters of another model: found base {str(found)[:12]}..., expected {expected[:12]}...; "
            "name the model that they were trained on"
        )


def _parse(content: Mapping[str, Any], num_blocks: int) -> AdapterConfig:
    """The config of adapters, ours or mlx-lm's, which counts blocks that a model does not have."""
    if content.get("fine_tune_type") != "lora":
        raise ValueError(f"fine_tune_type: found {content.get('fine_tune_type')!r}, expected 'lora'")
    settings, num_layers = content.get("lora_parameters"), content.get("num_layers")
    if not isinstance(settings, dict) or not isinstance(num_layers, int):
        raise ValueError("expected an object lora_parameters and a number num_layers")
    if unknown := sorted(set(settings) - set(LORA_PARAMETERS)):
        raise ValueError(f"lora_parameters: unknown {', '.join(unknown)}; known are {', '.join(LORA_PARAMETERS)}")
    keys = settings.get("keys") or []
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError(f"keys: found {keys!r}, expected a list of names")
    numbers = {name: settings[name] for name in ("rank", "scale", "dropout") if name in settings}
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int if name == "rank" else int | float):
            raise ValueError(f"{name}: found {value!r}, expected a number")
    return AdapterConfig(**numbers, keys=tuple(keys), num_layers=max(0, min(num_layers, num_blocks)))
