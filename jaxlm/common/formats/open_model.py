"""The one entry point for reading: a model on disk, of any program, opened as an Artifact."""

from pathlib import Path

from jaxlm.common.artifact.artifact import Artifact, load_artifact
from jaxlm.common.artifact.model_files import PICKLES, find_config, pickle_error, read_config
from jaxlm.common.formats.hub import open_hub
from jaxlm.common.formats.mlx import open_mlx
from shared_tokenizer.manifest import MANIFEST, verify_manifest

GGUF = ".gguf"


def open_model(path: Path, *, verify: bool = True) -> Artifact:
    """Open an artifact, a transformers directory of another program, an MLX directory, or a GGUF file.

    `verify=False` skips the check of every file's sha256. Of directories without a manifest only artifacts are refused.
    Raises DamagedError where a file differs from the manifest, and ValueError where the model cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path}: no such file or directory, expected a model")
    return _open_file(path) if path.is_file() else _open_directory(path, verify)


def _open_file(path: Path) -> Artifact:
    if path.suffix in PICKLES:
        raise ValueError(pickle_error(path))
    if path.suffix == GGUF:
        from jaxlm.common.gguf.reader import open_gguf  # importing the gguf library takes a third of a second

        return open_gguf(path)
    raise ValueError(f"{path}: found a file, expected a model directory or a {GGUF} file")


def _open_directory(directory: Path, verify: bool) -> Artifact:
    find_config(directory)
    if verify and (directory / MANIFEST).is_file():  # before any content of the files is used
        verify_manifest(directory)
        verify = False
    content = read_config(directory)
    if "jaxlm" in content:
        return open_mlx(directory) if "model_file" in content else load_artifact(directory, verify=verify)
    return open_hub(directory)
