"""Names of models on the shelf: `name@version` in place of a path, wherever a model is taken."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

ROOT_VARIABLE, DEFAULT_ROOT = "JAXLM_MODELS", "models"
ENTRY, MODEL = "entry.json", "model"
LONGEST_NAME = 64
_NAME = re.compile(rf"([A-Za-z0-9][A-Za-z0-9._-]{{0,{LONGEST_NAME - 1}}})(?:@([1-9][0-9]{{0,8}}))?")


@dataclass(frozen=True)
class ModelName:
    """A model on the shelf; without a version the newest one is meant."""

    name: str
    version: int | None = None

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.name}@{self.version}"


def parse_model_name(text: str) -> ModelName:
    """Read `name` or `name@version`. Raises ValueError where it may not name a folder."""
    found = _NAME.fullmatch(text)
    if found is None or found[1].endswith("."):
        raise ValueError(
            f"name: found {text[:80]!r}, expected up to {LONGEST_NAME} letters, digits, dots, dashes and underscores, "
            "the first a letter or digit, and @VERSION after them for one version"
        )
    return ModelName(found[1], int(found[2]) if found[2] else None)


def shelf_root() -> Path:
    """Return the folder of the shelf: the one that JAXLM_MODELS names, else `models` where the command is started."""
    return Path(os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT)


def versions_of(root: Path, name: str) -> list[int]:
    """Return the versions of a name on a shelf, in order."""
    folder = root / name
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(int(path.name) for path in found if path.name.isdigit() and (path / ENTRY).is_file())


def find_model(source: str | Path) -> Path:
    """Return the path of a model: the source itself where there is such a file or folder, else that of the shelf.

    Raises ValueError where the shelf has the name, but not the version.
    """
    path = Path(source)
    found = _NAME.fullmatch(str(source))
    if found is None or path.exists():
        return path
    root, name = shelf_root(), found[1]
    versions = versions_of(root, name)
    if not versions:
        return path
    version = int(found[2]) if found[2] else versions[-1]
    if version not in versions:
        there = ", ".join(f"{name}@{each}" for each in versions)
        raise ValueError(f"{source}: found no such version on the shelf {root}, expected one of {there}")
    return model_on_shelf(root / name / str(version))


def model_on_shelf(folder: Path) -> Path:
    """Return what the folder of a version holds: a model directory, or the one GGUF file in it."""
    model = folder / MODEL
    files = sorted(model.glob("*.gguf"))
    return files[0] if files and not (model / "config.json").is_file() else model


def shown_name(path: Path) -> str:
    """Return the name of a model for people: of the shelf name@version, else the last part of its path."""
    path = path.resolve()
    for folder in (path.parent, path.parent.parent):
        if (folder / ENTRY).is_file() and folder.name.isdigit():
            return f"{folder.parent.name}@{folder.name}"
    return path.name
