"""A model directory: config.json, model.safetensors, tokenizer files and a manifest.

It is the only thing handed from one program to the next. Saving is atomic; loading is strict.
"""

import json
import shutil
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.spec.config import ModelConfig
from jaxlm.spec.hf_config import from_hf_config, is_foreign, to_hf_config
from jaxlm.spec.manifest import MANIFEST, sealed_directory, verify_manifest
from jaxlm.spec.names import Kind, StoredTensor, stored_tensors
from jaxlm.spec.tensor_file import TensorFile, file_bytes, write_tensors

MAX_FILE_BYTES = 5 * 10**9
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)


@dataclass(frozen=True)
class Artifact:
    """A loaded model directory; `tensors` are memory-mapped and read on use."""

    config: ModelConfig
    kind: Kind
    float_dtype: str
    tensors: Mapping[str, np.ndarray]
    stored: tuple[StoredTensor, ...]


def save_artifact(
    directory: Path,
    config: ModelConfig,
    kind: Kind,
    read: Callable[[str], np.ndarray],
    *,
    float_dtype: str = "float32",
    tokenizer_dir: Path | None = None,
) -> None:
    """Write an artifact atomically. `read(name)` gives each stored tensor once, in file order.

    Floats are float32 in memory and rounded to `float_dtype` on disk. Raises ValueError where the place is
    taken or a tensor is not what the config says; then nothing is left behind.
    """
    with sealed_directory(directory) as temporary:
        write_artifact(temporary, config, kind, read, float_dtype=float_dtype, tokenizer_dir=tokenizer_dir)


def write_artifact(
    directory: Path,
    config: ModelConfig,
    kind: Kind,
    read: Callable[[str], np.ndarray],
    *,
    float_dtype: str = "float32",
    tokenizer_dir: Path | None = None,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
    """Write the files of an artifact into an existing directory that the caller seals (see `save_artifact`)."""
    content = to_hf_config(config, kind, float_dtype)
    (directory / CONFIG).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    if tokenizer_dir is not None:
        for name in TOKENIZER_FILES:
            if (tokenizer_dir / name).is_file():
                shutil.copyfile(tokenizer_dir / name, directory / name)
    _write_files(directory, stored_tensors(config, kind, float_dtype), read, max_file_bytes)


def weight_file_bytes(config: ModelConfig, kind: Kind, float_dtype: str = "float32") -> int:
    """Size of the safetensors files of an artifact of this kind, headers and all."""
    return sum(map(file_bytes, _files(stored_tensors(config, kind, float_dtype), MAX_FILE_BYTES)))


def _files(tensors: Sequence[StoredTensor], max_file_bytes: int) -> list[list[StoredTensor]]:
    """The tensors by the file that each goes into."""
    files: list[list[StoredTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if files[-1] and size + tensor.nbytes > max_file_bytes:
            files.append([])
            size = 0
        files[-1].append(tensor)
        size += tensor.nbytes
    return files


def _write_files(
    directory: Path, tensors: Sequence[StoredTensor], read: Callable[[str], np.ndarray], max_file_bytes: int
) -> None:
    groups = _files(tensors, max_file_bytes)
    if len(groups) == 1:
        write_tensors(directory / "model.safetensors", groups[0], read)
        return
    weight_map = {}
    for number, group in enumerate(groups, 1):
        name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        write_tensors(directory / name, group, read)
        weight_map |= {tensor.name: name for tensor in group}
    total = sum(tensor.nbytes for tensor in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def load_artifact(directory: Path, *, verify: bool = True) -> Artifact:
    """Open an artifact; `verify=False` skips the check of every file's sha256.

    Raises ValueError (DamagedError for the manifest) on unknown, missing, duplicate or misshapen tensors,
    unknown config keys and files that are not whole.
    """
    directory = Path(directory)
    if not (directory / CONFIG).is_file():
        inside = directory / "artifact"
        hint = f"; its artifact is {inside}" if (inside / CONFIG).is_file() else ""
        raise ValueError(f"{directory}: found no {CONFIG}, expected a model directory{hint}")
    # What it says is believed only after the manifest.
    content = _read_config(directory / CONFIG)
    if verify and ((directory / MANIFEST).is_file() or not is_foreign(content)):
        verify_manifest(directory)
    if content is None:
        raise ValueError(f"{directory / CONFIG}: not JSON")
    config, kind, float_dtype = from_hf_config(content)
    files = _open_files(directory)
    stored = _check_tensors(directory, files, stored_tensors(config, kind, float_dtype))
    tensors = ChainMap(*files)  # pyright: ignore[reportArgumentType]
    return Artifact(config, kind, float_dtype, tensors, stored)


def _read_config(path: Path) -> Any:
    """The JSON of a config, None where it is none."""
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError:
        return None


def _open_files(directory: Path) -> list[TensorFile]:
    if not (directory / INDEX).is_file():
        return [TensorFile(directory / "model.safetensors")]
    try:
        weight_map = json.loads((directory / INDEX).read_text("utf-8"))["weight_map"]
        assert isinstance(weight_map, dict)
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise ValueError(f"{directory / INDEX}: expected JSON with a 'weight_map' of tensor names to files") from error
    names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name:
            raise ValueError(f"{directory / INDEX}: file name {name!r} leads outside the directory")
    return [TensorFile(directory / name) for name in names]


def _check_tensors(
    directory: Path, files: Sequence[TensorFile], expected: Sequence[StoredTensor]
) -> tuple[StoredTensor, ...]:
    """The tensors found, which are those expected and no others."""
    found: dict[str, StoredTensor] = {}
    for file in files:
        for name in file:
            if name in found:
                raise ValueError(f"{directory}: tensor {name} is there twice")
            found[name] = file.stored(name)
    stored = tuple(found.values())
    for tensor in expected:
        if tensor.name not in found:
            raise ValueError(f"{directory}: missing tensor {tensor.name}, {tensor.dtype} {list(tensor.shape)}")
        if (there := found.pop(tensor.name)) != tensor:
            raise ValueError(
                f"{directory}: tensor {tensor.name}: found {there.dtype} {list(there.shape)}, "
                f"expected {tensor.dtype} {list(tensor.shape)}"
            )
    if found:
        raise ValueError(f"{directory}: unexpected tensor {min(found)}; the config has no place for it")
    return stored
