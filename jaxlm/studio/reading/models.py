"""The models below the root: sealed artifacts, directories of transformers and MLX, GGUF files."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jaxlm.studio.reading.folders import MODELS, RUNS, Folders

_DEEPEST = 3


@dataclass(frozen=True)
class Model:
    """A model by its place."""

    path: Path
    name: str
    """Path from the root on."""
    kind: str
    """artifact, directory or GGUF."""


def find_models(folders: Folders) -> list[Model]:
    """Return the models of the parts `models` and `runs` of the root, by name."""
    found = [
        Model(path, folders.short(path), kind)
        for part in (MODELS, RUNS)
        for path, kind in _below(folders.root / part, 0)
    ]
    return sorted(found, key=lambda model: model.name)


def _below(folder: Path, depth: int) -> Iterator[tuple[Path, str]]:
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    names = {entry.name for entry in entries}
    if "config.json" in names and any(name.endswith(".safetensors") for name in names):
        yield folder, _kind_of(folder)
        return
    for entry in entries:
        if entry.name.endswith(".gguf") and entry.is_file():
            yield Path(entry.path), "GGUF"
        elif depth < _DEEPEST and entry.is_dir(follow_symlinks=False) and _may_hold(entry.name):
            yield from _below(Path(entry.path), depth + 1)


def _may_hold(name: str) -> bool:
    return name[0] != "." and name not in ("checkpoints", "data", "damaged", "tokenizer", "adapters")


def _kind_of(folder: Path) -> str:
    try:
        found = json.loads((folder / "config.json").read_text("utf-8"))
        return "artifact" if (folder / "MANIFEST.sha256").is_file() else str(found.get("model_type", "directory"))[:40]
    except (OSError, ValueError, AttributeError):
        return "directory"
