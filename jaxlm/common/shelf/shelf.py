"""The shelf: models under `name@version` in one folder, copied whole, checked by ranges of bytes, never lost.

A version is a folder NAME/VERSION with the model as it came (`model/`), `entry.json`, `chunks.json` and the card. It
comes onto the shelf by one rename, leaves it by another into `.trash/`, and comes back by a third. Every method that
changes the shelf holds its lock; one that only reads needs none.
"""

import contextlib
import dataclasses
import datetime
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxlm.common.formats.open_model import model_path
from jaxlm.common.model_name import MODEL, ModelName, find_model, parse_model_name, shelf_root, versions_of
from jaxlm.common.shelf.card import CARD, card_text
from jaxlm.common.shelf.chunks import FileDigests, damage
from jaxlm.common.shelf.entry import Entry, Shelved, check_licence, check_notes, read_entry, write_entry
from jaxlm.common.shelf.facts import model_facts, run_around, run_facts
from jaxlm.common.shelf.place import TRASH, begun_folder, copy_model, locked, move, open_root
from shared_tokenizer.manifest import DamagedError, write_file

CHUNKS = "chunks.json"


class Shelf:
    """The models in one folder. Every method raises ValueError, which names what was found and the way out."""

    def __init__(self, root: str | Path | None = None):
        self.root = shelf_root() if root is None else Path(root)
        if self.root.exists() and not self.root.is_dir():
            raise ValueError(f"root: {self.root} is a file, expected the folder of the shelf; name another with --root")

    def entries(self, log: Callable[[str], None] = print) -> list[Shelved]:
        """Return all models, by name and version; `log` receives a line for each whose entry is damaged."""
        found = []
        for name in self._names():
            for version in versions_of(self.root, name):
                try:
                    found.append(self._shelved(ModelName(name, version)))
                except DamagedError as error:
                    log(f"warning: {error}")
        return found

    def find(self, text: str) -> Shelved:
        """Return the model of `name@version`, or the newest of `name`."""
        return self._shelved(self._full_name(text))

    def add(
        self, source: str | Path, name: str, *, licence: str | None = None, notes: str = "", origin: str | None = None
    ) -> Shelved:
        """Copy a model, or the artifact of a run, onto the shelf as the next version of a name.

        `origin` is what is told of its source instead of the path. Raises DamagedError where its seal does not hold,
        and ValueError where it cannot be read, or changes meanwhile; then the shelf is as it was.
        """
        wanted = parse_model_name(name)
        if wanted.version is not None:
            raise ValueError(f"name: found {name}, expected a name without a version; the next one is taken")
        licence, notes = check_licence(licence), check_notes(notes)
        path = find_model(source)
        run, model = run_around(path), model_path(path)
        open_root(self.root)
        self._check_spelling(wanted.name)
        with begun_folder(self.root) as folder:
            digests = copy_model(model, folder / MODEL)
            copied = folder / MODEL / model.name if model.is_file() else folder / MODEL
            facts = model_facts(copied)
            trained, evaluation = run_facts(run) if run is not None else ({}, {})
            entry = Entry(
                added=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
                form=facts.form,
                family=facts.family,
                parameters=facts.parameters,
                ternary_parameters=facts.ternary_parameters,
                vocab_size=facts.vocab_size,
                max_seq_len=facts.max_seq_len,
                bytes=sum(each.bytes for each in digests.values()),
                sha256=facts.sha256,
                chunks_sha256=_write_chunks(folder / CHUNKS, digests),
                source=origin or str(source),
                licence=licence,
                notes=notes,
                run=trained,
                evaluation=evaluation,
            )
            write_entry(folder, entry)
            with locked(self.root):
                self._check_spelling(wanted.name)
                given = ModelName(wanted.name, self._next_version(wanted.name))
                write_file(folder / CARD, card_text(Shelved(given, folder, entry)).encode())
                move(folder, self._folder(given))
        return self._shelved(given)

    def verify(self, text: str) -> list[str]:
        """Return in words what differs from the model as it was added, by ranges of bytes; empty where nothing does."""
        name = self._full_name(text)
        folder, found = self._folder(name), []
        with contextlib.suppress(DamagedError):
            expected_chunks = read_entry(folder).chunks_sha256
            digests, sha256 = _read_chunks(folder / CHUNKS)
            if sha256 == expected_chunks:
                there = {
                    path.relative_to(folder / MODEL).as_posix()
                    for path in (folder / MODEL).rglob("*")
                    if path.is_file() and "__pycache__" not in path.parts
                }
                found += [f"{file}: not of the model; remove it" for file in sorted(there - set(digests))]
                for file, digest in digests.items():
                    found += [f"{file}: {words}" for words in damage(folder / MODEL / file, digest)]
                return found
        return [f"{folder}: the record of its digests is damaged, so nothing can be compared; add the model again"]

    def rename(self, text: str, new_name: str) -> list[Shelved]:
        """Give all versions of a name another, or one version, which becomes the next of the other name."""
        old, new = parse_model_name(text), parse_model_name(new_name)
        if new.version is not None:
            raise ValueError(f"name: found {new_name}, expected a name without a version; the next one is taken")
        self._full_name(text)
        with locked(self.root):
            if old.version is None:
                if new.name != old.name:
                    if new.name.casefold() != old.name.casefold():
                        self._check_spelling(new.name)
                    if versions_of(self.root, new.name):
                        raise ValueError(
                            f"{new.name}: is a name of the shelf already; move single versions there: {old}@1"
                        )
                    with contextlib.suppress(OSError):  # an empty folder that a kill left
                        (self.root / new.name).rmdir()
                    move(self.root / old.name, self.root / new.name)
                moved = [ModelName(new.name, version) for version in versions_of(self.root, new.name)]
            else:
                self._check_spelling(new.name)
                moved = [ModelName(new.name, self._next_version(new.name))]
                move(self._folder(old), self._folder(moved[0]))
                self._tidy(old.name)
            return [self._with_card(name) for name in moved]

    def change(self, text: str, *, licence: str | None = None, notes: str | None = None) -> Shelved:
        """Give a model another licence or other notes; None leaves one as it is."""
        name = self._full_name(text)
        with locked(self.root):
            folder = self._folder(name)
            entry = read_entry(folder)
            entry = dataclasses.replace(
                entry,
                licence=entry.licence if licence is None else check_licence(licence),
                notes=entry.notes if notes is None else check_notes(notes),
            )
            write_entry(folder, entry)
            return self._with_card(name)

    def remove(self, text: str) -> Path:
        """Move one version into the trash and return its place there; `restore` brings it back."""
        name = parse_model_name(text)
        if name.version is None:
            versions = versions_of(self.root, name.name)
            there = ", ".join(f"{name}@{version}" for version in versions) or "none of it"
            raise ValueError(f"{name}: found no version, expected the one to remove; the shelf has {there}")
        self._full_name(text)
        with locked(self.root):
            place = self.root / TRASH / str(name)
            move(self._folder(name), place)
            self._tidy(name.name)
        return place

    def trash(self) -> list[ModelName]:
        """Return the models in the trash, whose folder may be deleted to free its room."""
        folder, found = self.root / TRASH, []
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            with contextlib.suppress(ValueError):
                found.append(parse_model_name(path.name))
        return found

    def restore(self, text: str) -> Shelved:
        """Bring a version back from the trash; without a version the newest one there."""
        wanted = parse_model_name(text)
        there = [each for each in self.trash() if each.name == wanted.name and wanted.version in (None, each.version)]
        if not there:
            all_there = ", ".join(map(str, self.trash())) or "nothing"
            raise ValueError(f"{wanted}: is not in the trash of {self.root}, which holds {all_there}")
        name = max(there, key=lambda each: each.version or 0)
        with locked(self.root):
            self._check_spelling(name.name)
            if self._folder(name).exists():
                raise ValueError(f"{name}: is on the shelf already; rename that one first")
            move(self.root / TRASH / str(name), self._folder(name))
        return self._shelved(name)

    def _names(self) -> Iterator[str]:
        for path in sorted(self.root.iterdir()) if self.root.is_dir() else ():
            with contextlib.suppress(ValueError):
                if path.is_dir() and parse_model_name(path.name).version is None:
                    yield path.name

    def _full_name(self, text: str) -> ModelName:
        """Return a name with its version. Raises ValueError where the shelf has no such model."""
        name = parse_model_name(text)
        versions = versions_of(self.root, name.name)
        if not versions:
            names = [each for each in self._names() if versions_of(self.root, each)]
            raise ValueError(f"{name.name}: is no name of the shelf {self.root}; it has {', '.join(names) or 'none'}")
        if name.version is None:
            return ModelName(name.name, versions[-1])
        if name.version not in versions:
            there = ", ".join(f"{name.name}@{version}" for version in versions)
            raise ValueError(f"{name}: found no such version on the shelf {self.root}, expected one of {there}")
        return name

    def _folder(self, name: ModelName) -> Path:
        return self.root / name.name / str(name.version)

    def _shelved(self, name: ModelName) -> Shelved:
        return Shelved(name, self._folder(name), read_entry(self._folder(name)))

    def _with_card(self, name: ModelName) -> Shelved:
        found = self._shelved(name)
        write_file(found.folder / CARD, card_text(found).encode())
        return found

    def _next_version(self, name: str) -> int:
        in_trash = [each.version or 0 for each in self.trash() if each.name == name]
        folder = self.root / name
        taken = [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
        return 1 + max([*taken, *in_trash], default=0)

    def _check_spelling(self, name: str) -> None:
        """Raise ValueError where a name differs from one of the shelf by capital letters alone: some disks see none."""
        for other in self._names():
            if other != name and other.casefold() == name.casefold() and versions_of(self.root, other):
                raise ValueError(f"name: found {name}, but the shelf has {other}; take that, or another word")

    def _tidy(self, name: str) -> None:
        with contextlib.suppress(OSError):  # other versions are in it
            (self.root / name).rmdir()


def _write_chunks(path: Path, digests: Mapping[str, FileDigests]) -> str:
    """Write chunks.json, and return its sha256 as hex."""
    content: dict[str, Any] = {name: dataclasses.asdict(each) for name, each in digests.items()}
    text = (json.dumps(content) + "\n").encode("utf-8", "backslashreplace")
    write_file(path, text)
    return hashlib.sha256(text).hexdigest()


def _read_chunks(path: Path) -> tuple[dict[str, FileDigests], str]:
    try:
        text = path.read_bytes()
        content = json.loads(text)
        found = {
            name: FileDigests(each["bytes"], each["sha256"], tuple(each["chunks"])) for name, each in content.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{path}: damaged ({error})") from error
    return found, hashlib.sha256(text).hexdigest()
