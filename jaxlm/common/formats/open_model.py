"""One door for reading: a model on disk, whoever wrote it, as an Artifact."""

from pathlib import Path

from jaxlm.common.artifact.artifact import Artifact, load_artifact
from jaxlm.common.artifact.model_files import PICKLES, find_config, read_config, refusal_of_pickle
from jaxlm.common.formats.hub import open_hub
from jaxlm.common.formats.mlx import open_mlx
from shared_tokenizer.manifest import MANIFEST, verify_manifest

GGUF = ".gguf"


def open_model(path: Path, *, verify: bool = True) -> Artifact:
    """Open an artifact, a transformers directory that was not written here, an MLX directory, or a GGUF file.

    `verify=False` skips the check of every file's sha256; without a manifest only an artifact is refused. Raises
    ValueError (DamagedError for the manifest) naming what is wrong with it.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path}: no such file or directory, expected a model")
    return _open_file(path) if path.is_file() else _open_directory(path, verify)


def _open_file(path: Path) -> Artifact:
    if path.suffix in PICKLES:
        raise ValueError(refusal_of_pickle(path))
    if path.suffix == GGUF:
        from jaxlm.common.gguf.reader import open_gguf  # its library takes a third of a second to import

        return open_gguf(path)
    raise ValueError(f"{path}: a file, expected a model directory or a {GGUF} file")


def _open_directory(directory: Path, verify: bool) -> Artifact:
    find_config(directory)
    if verify and (directory / MANIFEST).is_file():  # before anything that the files say is believed
        verify_manifest(directory)
        verify = False
    content = read_config(directory)
    if "jaxlm" in content:
        return open_mlx(directory) if "model_file" in content else load_artifact(directory, verify=verify)
    return open_hub(directory)
