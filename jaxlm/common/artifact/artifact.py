"""A model directory: config.json, model.safetensors, tokenizer files and a manifest.

An artifact is the only thing that one program hands to the next. Saving is atomic; loading is strict.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.hf_config import from_hf_config, to_hf_config
from jaxlm.common.architecture.parameters import Kind, StoredTensor, stored_tensors
from jaxlm.common.artifact.model_files import (
    CONFIG,
    MAX_FILE_BYTES,
    check_layers,
    check_tensors,
    find_config,
    named_faults,
    open_tensors,
    read_config,
    tensor_files_bytes,
    write_model_files,
)
from shared_tokenizer.manifest import sealed_directory, verify_manifest


@dataclass(frozen=True)
class Artifact:
    """A model opened for reading: our own files, or other programs' files in our own form.

    `tensors` maps the name of every tensor in `stored` to its array, which is read and converted on use. Floats of any
    width are float32 in memory.
    """

    config: ModelConfig
    kind: Kind
    float_dtype: str
    """Dtype of the floats on disk: float32 or bfloat16; float16 of other programs counts as float32."""
    tensors: Mapping[str, np.ndarray]
    stored: tuple[StoredTensor, ...]
    tokenizer_metadata: Mapping[str, Any] | None = None
    """Metadata with the tokenizer of a GGUF file; None for a directory, which holds tokenizer files."""


def save_artifact(
    directory: Path,
    config: ModelConfig,
    kind: Kind,
    read: Callable[[str], np.ndarray],
    *,
    float_dtype: str = "float32",
    tokenizer_dir: Path | None = None,
) -> None:
    """Write an artifact atomically. `read(name)` returns a stored tensor; it is called once per tensor, in file order.

    Floats are float32 in memory and rounded to `float_dtype` on disk. Raises ValueError where the directory is taken
    or a tensor does not have the shape and dtype of the config; then nothing is left behind.
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
    tensors = stored_tensors(config, kind, float_dtype)
    write_model_files(directory, content, tensors, read, tokenizer_dir=tokenizer_dir, max_file_bytes=max_file_bytes)


def weight_file_bytes(config: ModelConfig, kind: Kind, float_dtype: str = "float32") -> int:
    """Return the bytes of the safetensors files of an artifact of this kind, with their headers."""
    return tensor_files_bytes(stored_tensors(config, kind, float_dtype))


def load_artifact(directory: Path, *, verify: bool = True) -> Artifact:
    """Open an artifact. `verify=False` skips the check of every file's sha256.

    Raises DamagedError where a file differs from the manifest, and ValueError on unknown config keys and on tensors
    that are unknown, missing, duplicate or of another shape or dtype.
    """
    directory = Path(directory)
    find_config(directory)
    if verify:  # before any content of the files is used
        verify_manifest(directory)
    with named_faults(directory / CONFIG):
        config, kind, float_dtype = from_hf_config(read_config(directory))
    tensors = open_tensors(directory)
    found = tensors.stored()
    check_layers(directory, found, config)
    check_tensors(directory, found, stored_tensors(config, kind, float_dtype))
    return Artifact(config, kind, float_dtype, tensors, tuple(found.values()))
