"""A path that is no model -> what it is instead, and the way out: a line for each thing that people name by mistake."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxlm.common.artifact.model_files import CONFIG, PICKLES, pickle_error
from jaxlm.common.recognition.families import other_family

GGUF = ".gguf"
_ADAPTERS = "adapter_config.json"
ARTIFACT = "artifact"
_RUN, _FINETUNE = RUN_SETTINGS = ("config.yaml", "finetune.yaml")
_SHARDS = "manifest.json"
# Entries that are named at most.
_SHOWN = 5


def explain_missing(path: Path) -> str:
    """Return the error for a path that does not exist."""
    parts = path.parts
    hint = ""
    if len(parts) == 2 and not path.is_absolute() and not Path(parts[0]).exists():
        hint = f"; a model of the Hugging Face hub is copied first: hf download {path} --local-dir DIR"
    return f"{path}: no such file or directory, expected a model{hint}"


def explain_file(path: Path) -> str:
    """Return the error for a file that is no GGUF."""
    if path.suffix in PICKLES:
        return pickle_error(path)
    if path.suffix == ".onnx":
        return f"{path}: found an ONNX model, whose weights have no names of layers; use the model's safetensors"
    if path.suffix in (".safetensors", ".json", ".model"):
        return f"{path}: found a file, expected a model directory or a {GGUF} file; name the directory, {path.parent}"
    return f"{path}: found a file, expected a model directory or a {GGUF} file"


def explain_directory(directory: Path) -> str:
    """Return the error for a directory without config.json, with a guess at what it is."""
    guess = next(_guesses(directory), None)
    return f"{directory}: found no {CONFIG}, expected a model directory{f'; {guess}' if guess else ''}"


def refuse_unreadable(directory: Path, content: Mapping[str, Any]) -> None:
    """Raise ValueError where a config.json is that of a model in a form that is not read here, by its name."""
    if family := other_family(content):
        raise ValueError(f"{directory}: found {family}, expected a dense or ternary decoder of attention layers")
    method = content.get("quantization_config")
    method = method.get("quant_method") if isinstance(method, dict) else None
    if method is not None and method != "bitnet":
        raise ValueError(
            f"{directory}: config.json: quant_method: found {method!r}, expected 'bitnet' or none; use the model that "
            "it was quantized from"
        )


def _guesses(directory: Path) -> Iterator[str]:
    names = sorted(path.name for path in directory.iterdir())
    if (directory / ARTIFACT / CONFIG).is_file():
        yield f"its artifact is {directory / ARTIFACT}"
    if _ADAPTERS in names:
        yield _adapters(directory)
    if _FINETUNE in names:
        yield (
            f"it is a fine-tuning run: its adapters are {directory / 'adapters'} (--adapter_path), trained weights are "
            f"{directory / ARTIFACT}"
        )
    if _RUN in names:
        yield (
            "it is a run without an artifact: finish it with --resume, or write its last checkpoint with "
            f"`jaxlm convert {directory} DIR --to packed`"
        )
    if _SHARDS in names and any(name.endswith(".npy") for name in names):
        yield "it holds token shards, which are named with --data_dir"
    if models := _models_in(directory):
        shown = ", ".join(str(directory / name) for name in models[:_SHOWN])
        more = f" and {len(models) - _SHOWN} more" if len(models) > _SHOWN else ""
        yield f"it is a folder of runs or models, name one of them: {shown}{more}"
    if files := [name for name in names if name.endswith(GGUF)]:
        yield f"name the GGUF file in it: {directory / files[0]}"
    if any(name.endswith(".onnx") for name in names):
        yield "it holds an ONNX model, whose weights have no names of layers: use the model's safetensors"
    if any(name.endswith(".safetensors") for name in names):
        yield f"it holds weights: copy their {CONFIG} next to them"
    if files := [name for name in names if name.endswith(PICKLES)]:
        yield pickle_error(directory / files[0])
    if {"tokenizer.json", "tokenizer.model", "vocab.json"} & set(names):
        yield "it holds a tokenizer alone"
    if not names:
        yield "it is empty"


def _adapters(directory: Path) -> str:
    try:
        content = json.loads((directory / _ADAPTERS).read_bytes())
    except (ValueError, RecursionError):
        content = {}
    base = content.get("base_model_name_or_path") if isinstance(content, dict) else None
    if isinstance(content, dict) and "peft_type" in content:
        return (
            f"it holds adapters of PEFT{f' for {base}' if isinstance(base, str) else ''}: merge them there "
            "(merge_and_unload, save_pretrained) and name the result"
        )
    return "it holds adapters: name the model that they were trained on, and the adapters with --adapter_path"


def _models_in(directory: Path) -> list[str]:
    """Return the names of the models and runs in a folder, the newest first."""
    found = [
        path
        for path in directory.iterdir()
        if path.is_dir() and any((path / name).is_file() for name in (CONFIG, _RUN, _FINETUNE))
    ]
    return [path.name for path in sorted(found, key=lambda path: -path.stat().st_mtime)]
