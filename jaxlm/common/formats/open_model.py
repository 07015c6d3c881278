"""The one entry point for reading: a model on disk, of any program, opened as an Artifact."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxlm.common.artifact.artifact import Artifact, load_artifact
from jaxlm.common.artifact.model_files import CONFIG, named_faults, read_config
from jaxlm.common.formats.as_ternary import TernaryReading, as_ternary, log_if_ternary
from jaxlm.common.formats.explain import (
    ARTIFACT,
    GGUF,
    RUN_SETTINGS,
    explain_directory,
    explain_file,
    explain_missing,
    refuse_unreadable,
)
from jaxlm.common.formats.hub import open_hub
from jaxlm.common.formats.mlx import open_mlx
from jaxlm.common.formats.mlx_quantized import is_quantized_mlx, open_quantized_mlx
from jaxlm.common.model_name import find_model
from shared_tokenizer.load import find_tokenizer, log_line
from shared_tokenizer.manifest import MANIFEST, verify_manifest
from shared_tokenizer.tokenizers.tokenizer import Tokenizer


def open_model(
    path: Path, *, verify: bool = True, reading: TernaryReading | None = None, log: Callable[[str], None] = log_line
) -> Artifact:
    """Open an artifact, that of a run, a transformers directory, an MLX directory, a GGUF file, or a name of the shelf.

    `verify=False` skips the check of every file's sha256. Of directories without a manifest only artifacts are refused,
    unless transformers has saved them again; `log` receives a line then, one on each assumption about a GGUF, and one
    where a dense model seems to be ternary. With `reading` such a model is read as ternary (`as_ternary`).
    Raises DamagedError where a file differs from the manifest, and ValueError where the model cannot be read, which
    names the thing that was found instead of one.
    """
    path = model_path(path)
    artifact = _open(path, verify, log)
    if reading is None:
        if not _names_its_linears(path):
            log_if_ternary(artifact, path, log)
        return artifact
    with named_faults(path):
        return as_ternary(artifact, reading, lambda line: log(f"{path}: {line}"))


def _open(path: Path, verify: bool, log: Callable[[str], None]) -> Artifact:
    if path.is_dir():
        return _open_directory(path, verify, log)
    if not path.exists():
        raise ValueError(explain_missing(path))
    if path.suffix != GGUF:
        raise ValueError(explain_file(path))
    from jaxlm.common.gguf.reader import open_gguf  # importing the gguf library takes a third of a second

    return open_gguf(path, log=log)


def model_path(path: Path) -> Path:
    """Return the directory or file of a model: of a run its artifact, of a name on the shelf what lies there."""
    path = find_model(path)
    is_run = any((path / name).is_file() for name in RUN_SETTINGS)
    return path / ARTIFACT if is_run and (path / ARTIFACT / CONFIG).is_file() else path


def find_model_tokenizer(
    path: Path, artifact: Artifact, *, verify: bool = True, log: Callable[[str], None] = log_line
) -> Tokenizer | None:
    """Return the tokenizer of a model that `open_model` opened, None where it has none.

    `log` receives a line where it has ids that the embedding has not: they are refused wherever they occur. Raises
    ValueError where it cannot be read, or where it begins texts with such an id.
    """
    path = find_model(path)
    tokenizer = find_tokenizer(path, artifact.tokenizer_metadata, verify=verify)
    rows = artifact.config.vocab_size
    if tokenizer is None or tokenizer.vocab_size <= rows:
        return tokenizer
    if any(token >= rows for token in tokenizer.start_ids):
        raise ValueError(
            f"{path}: found begin token {tokenizer.start_ids[0]}, but the embedding has {rows:,} rows: the tokenizer "
            "belongs to another model"
        )
    named = [token for token, i in tokenizer.special_tokens.items() if i >= rows]
    shown = f" ({', '.join(named[:5])})" if named else ""
    log(
        f"{path}: the tokenizer has {tokenizer.vocab_size:,} ids, the embedding {rows:,} rows: texts with an id beyond "
        f"them are refused{shown}"
    )
    return tokenizer


def _open_directory(directory: Path, verify: bool, log: Callable[[str], None]) -> Artifact:
    if not (directory / CONFIG).is_file():
        raise ValueError(explain_directory(directory))
    with named_faults(directory):
        return _open_config(directory, verify, log)


def _open_config(directory: Path, verify: bool, log: Callable[[str], None]) -> Artifact:
    is_sealed = (directory / MANIFEST).is_file()
    if verify and is_sealed:  # before any content of the files is used
        verify_manifest(directory)
    content = read_config(directory)
    if "jaxlm" in content and "model_file" in content:
        return open_mlx(directory)
    if "jaxlm" in content and (is_sealed or not _was_saved_again(content)):
        return load_artifact(directory, verify=verify and not is_sealed)
    if "jaxlm" in content:
        log(
            f"{directory}: transformers {content['transformers_version']} has saved this model again, without "
            f"{MANIFEST}; read as a transformers directory, by its config.json and weights"
        )
    refuse_unreadable(directory, content)
    return open_quantized_mlx(directory, log) if is_quantized_mlx(content) else open_hub(directory, log)


def _names_its_linears(path: Path) -> bool:
    """Return True if this project wrote a directory: its config.json says which linears are ternary."""
    return path.is_dir() and "jaxlm" in read_config(path)


def _was_saved_again(content: dict[str, Any]) -> bool:
    """Return True if transformers wrote a config.json: it keeps our keys and adds its version."""
    return isinstance(content.get("transformers_version"), str)
