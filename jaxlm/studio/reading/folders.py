"""The folders that the studio may read and write: its root, and those that were allowed."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxlm.studio.reading.shown_text import shown_line

STATE = ".studio"
# Parts of the root, each with what is made in it.
DATA, RUNS, MODELS, TEXTS = "data", "runs", "models", "texts"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MOST_ENTRIES = 500


@dataclass(frozen=True)
class Entry:
    """A file or folder inside an allowed folder."""

    path: Path
    is_folder: bool
    size: int
    """Bytes of a file, 0 of a folder."""

    @property
    def name(self) -> str:
        """Name as a page shows it."""
        return shown_line(os.fsencode(self.path.name).decode("utf-8", "backslashreplace"), 120)


class Folders:
    """The root of the studio and further folders that may be read."""

    def __init__(self, root: Path, allowed: Sequence[Path] = ()):
        self.root = root.resolve()
        self.allowed = tuple(dict.fromkeys([self.root, *(path.resolve() for path in allowed)]))

    @property
    def state(self) -> Path:
        """Folder of the studio's own files: its key, jobs and the draft of the next run."""
        return self.root / STATE

    def resolve(self, text: str | Path) -> Path:
        """Return a path with its links followed, relative ones from the root on.

        Raises ValueError where it leads out of the allowed folders, or is the studio's own.
        """
        if "\0" in str(text):
            raise ValueError("path: found a NUL character, expected the name of a file")
        path = (self.root / Path(text).expanduser()).resolve()
        if not any(path.is_relative_to(folder) for folder in self.allowed):
            folders = ", ".join(map(str, self.allowed))
            raise ValueError(
                f"{shown_line(str(text), 200)}: is outside of the folders that the studio may use ({folders}); start "
                "it with --allow DIR"
            )
        if path.is_relative_to(self.state):
            raise ValueError(f"{shown_line(str(text), 200)}: holds the studio's own files, choose another folder")
        return path

    def new(self, part: str, name: str) -> Path:
        """Return the place of a new run, model or set of texts. Raises ValueError on a name that is none, or is taken.

        `part` is one of the constants of this module.
        """
        path = self.named(part, name)
        if path.exists():
            raise ValueError(f"name: {part}/{name} is there already; choose another name")
        return path

    def named(self, part: str, name: str) -> Path:
        """Return the place of a run, model or set of texts, there or not. Raises ValueError on a name that is none."""
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"name: found {shown_line(name, 80)!r}, expected letters, digits, dots, dashes and underscores, at "
                "most 64, a letter or digit first"
            )
        return self.resolve(Path(part) / name)

    def entries(self, folder: Path) -> list[Entry]:
        """Return what a folder holds, folders first, without hidden names; at most 500 entries.

        Raises ValueError where the folder may not be read.
        """
        path = self.resolve(folder)
        if not path.is_dir():
            raise ValueError(f"{shown_line(str(folder), 200)}: no such folder")
        found: list[Entry] = []
        with os.scandir(path) as scan:
            for each in scan:
                if each.name.startswith(".") or not self._may_show(each):
                    continue
                is_folder = each.is_dir()
                found.append(Entry(Path(each.path), is_folder, 0 if is_folder else each.stat().st_size))
                if len(found) >= _MOST_ENTRIES:
                    break
        return sorted(found, key=lambda entry: (not entry.is_folder, entry.path.name.lower()))

    def _may_show(self, entry: os.DirEntry[str]) -> bool:
        """Return True if an entry is a file or folder, and not a link that leads out."""
        if not (entry.is_file() or entry.is_dir()):
            return False
        return not entry.is_symlink() or any(Path(entry.path).resolve().is_relative_to(each) for each in self.allowed)

    def short(self, path: Path) -> str:
        """Return a path as people write it: from the root on, where it is inside."""
        path = Path(path)
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)


def free_name(folder: Path, stem: str) -> str:
    """Return `stem`, or the first of `stem-2`, `stem-3`, ... that a folder does not hold."""
    name, number = stem, 1
    while (folder / name).exists():
        number += 1
        name = f"{stem}-{number}"
    return name


def plain_name(text: str, otherwise: str = "text") -> str:
    """Return a text as a name that `Folders.new` takes."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:40]
    return name if _NAME.fullmatch(name) else otherwise
