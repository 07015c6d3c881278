"""Names of files and folders -> the splits of a data set: training, validation, test.

A name alone makes no split: `test.txt` may be a text about tests. A validation or test split has a training split
next to it, in the same folder.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shared_tokenizer.readers.readers import ROW_SUFFIXES, suffix_of

Role = Literal["train", "val", "test"]
_ROLES: dict[Role, str] = {
    "train": "train training trainset",
    "val": "valid validation val dev eval evaluation valset devset heldout",
    "test": "test testing testset",
}
_ROLE_OF: dict[str, Role] = {word: role for role, words in _ROLES.items() for word in words.split()}
_DATA_SUFFIXES = frozenset([*ROW_SUFFIXES, ".txt", ".text", ""])
# Folders named train and test may hold programs; these files are texts.
_PROSE_SUFFIXES = _DATA_SUFFIXES | {".md", ".rst", ".html", ".htm", ".xml"}
_NUMBERS = re.compile(r"[-_.]?\d+([-_.]of[-_.]\d+)?")
_OF_MANY = re.compile(r"[-_.]\d{5}[-_.]of[-_.]\d{5}")


@dataclass(frozen=True)
class _Entry:
    """A file or folder whose name holds the name of a split. `rest` is that name without it and without numbers."""

    role: Role
    rest: str
    is_row_file: bool
    is_folder: bool
    is_one_of_many: bool


@dataclass(frozen=True)
class Found:
    """The role of a file, and the file or the folder above it whose name says so."""

    role: Role
    part: Path


def find_roles(paths: Sequence[tuple[Path, Path]]) -> list[Found | None]:
    """Return the role of each file, None where it belongs to no layout of splits.

    A path comes with the folder above its source: only what is inside of that counts as its neighbours.
    """
    below: dict[Path, set[str]] = defaultdict(set)
    for path, top in paths:
        for parent in path.parents:
            if parent == top or parent == parent.parent:
                break
            below[parent].add(suffix_of(path))
    entries: dict[Path, dict[str, _Entry]] = defaultdict(dict)
    for path, top in paths:
        current = path
        while current not in (top, current.parent):
            if (entry := _entry(current, is_folder=current in below)) is not None:
                entries[current.parent][current.name] = entry
            current = current.parent
    return [_role(path, top, entries, below) for path, top in paths]


def unmatched(paths: Iterable[tuple[Path, Path]], roles: Sequence[Role | None]) -> list[Path]:
    """Return the files that have the name of a held-out split and no training split next to it."""
    return [
        path
        for (path, _), role in zip(paths, roles, strict=True)
        if role is None
        and (entry := _entry(path, is_folder=False)) is not None
        and (entry.role != "train" and entry.rest == "*" and entry.is_row_file)
    ]


def _entry(path: Path, *, is_folder: bool) -> _Entry | None:
    suffix = "" if is_folder else suffix_of(path)
    if suffix not in _DATA_SUFFIXES:
        return None
    stem = path.name
    if not is_folder and suffix:
        stem = stem[: stem.lower().rindex(suffix)]
    words = re.split(r"([^A-Za-z]+)", stem.removeprefix("split="))
    named = [i for i, word in enumerate(words) if word.lower() in _ROLE_OF]
    if len(named) != 1:
        return None
    role = _ROLE_OF[words[named[0]].lower()]
    rest = _NUMBERS.sub("", "".join("*" if i == named[0] else word for i, word in enumerate(words)))
    return _Entry(role, rest, suffix in ROW_SUFFIXES, is_folder, bool(_OF_MANY.search(stem)))


def _role(path: Path, top: Path, entries: dict[Path, dict[str, _Entry]], below: dict[Path, set[str]]) -> Found | None:
    """Return the role that the outermost folder or the file itself has in a layout."""
    chain = [path]
    while chain[-1].parent not in (top, chain[-1].parent.parent):
        chain.append(chain[-1].parent)
    for part in reversed(chain):
        siblings = entries[part.parent]
        entry = siblings.get(part.name)
        if entry is not None and any(_belong_together(entry, other, siblings.values()) for other in siblings.values()):
            held_out = [part.parent / name for name, each in siblings.items() if each.role != "train"]
            if not entry.is_folder or _is_data(held_out, siblings, below):
                return Found(entry.role, part)
    return None


def _belong_together(entry: _Entry, other: _Entry, siblings: Iterable[_Entry]) -> bool:
    """Return True if one of the two is a training split and the other one that it is held out from."""
    if (entry.role == "train") == (other.role == "train"):
        return False
    train, held_out = (entry, other) if entry.role == "train" else (other, entry)
    return (
        train.rest == held_out.rest
        or (train.is_one_of_many and held_out.is_one_of_many)
        or (train.rest == "*" and held_out.rest.startswith("*") and (held_out.is_row_file or held_out.is_one_of_many))
    )


def _is_data(held_out: Sequence[Path], siblings: dict[str, _Entry], below: dict[Path, set[str]]) -> bool:
    """Return True if folders of splits hold data: texts or rows, or a validation split, which programs do not have."""
    return any(siblings[path.name].role == "val" or below.get(path, set()) & _PROSE_SUFFIXES for path in held_out)
