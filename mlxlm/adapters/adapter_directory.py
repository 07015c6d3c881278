"""A directory of adapters, in mlx-lm's own format.

`adapters.safetensors` and `adapter_config.json` are as `mlx_lm.lora` writes them, so `--adapter-path` of stock mlx-lm
accepts the directory for the exported model. mlx-lm ignores two additions: the object `jaxlm` in the config, and the
chat template of adapters that were trained on chats.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.parameters import StoredTensor
from jaxlm.common.artifact.model_files import check_tensors, read_json_object
from jaxlm.common.artifact.safetensors import TensorFile, write_tensors
from jaxlm.common.formats.mlx import needs_model_file
from mlxlm.adapters.adapter_config import LORA_PARAMETERS, AdapterConfig
from mlxlm.adapters.adapters import adapted_layers, add_adapters, base_fingerprint, resolve_config
from mlxlm.model.language_model import LanguageModel
from mlxlm.model.trees import flat_arrays
from shared_tokenizer.chat.template import copy_chat_template
from shared_tokenizer.load import verify_tokenizer
from shared_tokenizer.manifest import MANIFEST, sealed_directory, verify_manifest

CONFIG = "adapter_config.json"
WEIGHTS = "adapters.safetensors"
FORMAT_VERSION = 1
FLOATS = ("float32", "bfloat16", "float16")


def save_adapters(
    directory: Path, model: LanguageModel, config: AdapterConfig, tokenizer_dir: Path | None = None
) -> None:
    """Write the adapters of a model atomically; `config` is the one they were added with.

    The chat template of `tokenizer_dir`, if it has one, is copied into the directory. Raises ValueError if the
    directory exists, a number is not finite or the tokenizer differs from its seal; then nothing is written.
    """
    config = resolve_config(model, config)
    content = {
        "fine_tune_type": "lora",
        "num_layers": config.num_layers,
        "lora_parameters": config.lora_parameters,
        "jaxlm": {"format_version": FORMAT_VERSION, "base_fingerprint": base_fingerprint(model)},
    }
    arrays = flat_arrays(model.parameters())
    tensors = _stored_tensors(model, config)
    with sealed_directory(directory) as temporary:
        (temporary / CONFIG).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
        prefix = _prefix(model.config)
        write_tensors(temporary / WEIGHTS, tensors, lambda name: np.array(arrays[name.removeprefix(prefix)]))
        if tokenizer_dir is not None:
            verify_tokenizer(tokenizer_dir)
            copy_chat_template(tokenizer_dir, temporary)


def load_adapters(model: LanguageModel, directory: Path, *, verify: bool = True) -> AdapterConfig:
    """Add the adapters of a directory to the model that they were trained on, and return their config.

    `verify=False` skips the check of every file's sha256. Adapters that mlx-lm trained have neither a manifest nor a
    fingerprint of their model, so neither is checked. Raises ValueError if the directory is incomplete or damaged, if
    it belongs to another model, or if a tensor does not fit its config; then the model is unchanged.
    """
    directory = Path(directory)
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).is_file():
            raise ValueError(f"{directory}: found no {name}, expected a directory of adapters{_hint(directory)}")
    content = read_json_object(directory / CONFIG)
    if verify and ("jaxlm" in content or (directory / MANIFEST).is_file()):
        verify_manifest(directory)
    _check_base(directory, model, content)
    try:
        config = resolve_config(model, _parse_config(content, model.config.num_layers))
    except ValueError as error:
        raise ValueError(f"{directory / CONFIG}: {error}") from error
    file = TensorFile(directory / WEIGHTS)
    found = {name: file.stored(name) for name in file}
    check_tensors(directory, found, _stored_tensors(model, config), _fits)
    config = add_adapters(model, config)
    prefix = _prefix(model.config)
    model.load_weights([(name.removeprefix(prefix), mx.array(file[name])) for name in file], strict=False)
    mx.eval(model.trainable_parameters())
    return config


def _hint(directory: Path) -> str:
    """Return what a directory is that holds no adapters of ours or mlx-lm's, as the end of an error."""
    if not directory.exists():
        return "; there is no such directory"
    if (directory / "adapters" / CONFIG).is_file():
        return f"; did you mean {directory / 'adapters'}?"
    if (directory / "adapter_model.safetensors").is_file() or (directory / "adapter_model.bin").is_file():
        return (
            "; it holds adapters of PEFT: merge them there (merge_and_unload, save_pretrained), and name the result "
            "with --model"
        )
    if (directory / "config.json").is_file():
        return "; it holds a model, which is named with --model"
    return ""


def _prefix(config: ModelConfig) -> str:
    """Return mlx-lm's prefix of the names of a block's parameters: its own Llama keeps the blocks in `model`."""
    return "" if needs_model_file(config) else "model."


def _stored_tensors(model: LanguageModel, config: AdapterConfig) -> list[StoredTensor]:
    """Return the tensors of the adapters of a resolved config: `lora_a` `[in, rank]` and `lora_b` `[rank, out]`."""
    prefix = _prefix(model.config)
    return [
        StoredTensor(f"{prefix}{path}.{part}", shape, "float32")
        for path, (rows, columns) in adapted_layers(model, config).items()
        for part, shape in (("lora_a", (columns, config.rank)), ("lora_b", (config.rank, rows)))
    ]


def _fits(found: StoredTensor, expected: StoredTensor) -> bool:
    return found.shape == expected.shape and found.dtype in FLOATS


def _check_base(directory: Path, model: LanguageModel, content: Mapping[str, Any]) -> None:
    """Raise ValueError if the fingerprint in the adapters' config is that of another model."""
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


def _parse_config(content: Mapping[str, Any], num_blocks: int) -> AdapterConfig:
    """Return the config that adapter_config.json holds, ours or mlx-lm's, whose num_layers may exceed the model's.

    Raises ValueError on a key or a value that is not known here.
    """
    if content.get("fine_tune_type") != "lora":
        raise ValueError(f"fine_tune_type: found {content.get('fine_tune_type')!r}, expected 'lora'")
    settings, num_layers = content.get("lora_parameters"), content.get("num_layers")
    if not isinstance(settings, dict) or not isinstance(num_layers, int):
        raise ValueError(
            f"found lora_parameters {settings!r} and num_layers {num_layers!r}, expected an object and a number"
        )
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
