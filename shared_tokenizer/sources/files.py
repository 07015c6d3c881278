"""Sources by name -> their readable files, each with its format, encoding, split and columns."""

import glob
import itertools
import sysconfig
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from shared_tokenizer.readers.encodings import advice
from shared_tokenizer.readers.json_values import holds_lines
from shared_tokenizer.readers.readers import ROW_SUFFIXES, TEXT_SUFFIXES, format_of, read_rows
from shared_tokenizer.readers.rows import LostRestError, Row
from shared_tokenizer.readers.streams import find_encoding
from shared_tokenizer.sources.columns import Columns, find_columns
from shared_tokenizer.sources.file_rules import FileRules
from shared_tokenizer.sources.folders import Listing, list_folder, printable
from shared_tokenizer.sources.row_rules import RowRules
from shared_tokenizer.sources.splits import Found, Role, find_roles, unmatched

STDLIB = "stdlib"
SNIFFED_ROWS = 100
# Tests repeat themselves, installed packages differ between machines, and the last two are tables of data.
_STDLIB_LEFT_OUT = {"test", "tests", "site-packages", "dist-packages", "encodings", "pydoc_data"}
_NAMES_SHOWN = 3
EXPECTED = (
    f"a text file, a folder of them ({' '.join(sorted(TEXT_SUFFIXES))}), {' '.join(ROW_SUFFIXES)} "
    f"(.gz and .zst too) or {STDLIB!r}"
)


@dataclass(frozen=True)
class SourceFile:
    """One file of a source, with its format and columns."""

    source: str
    path: Path
    name: str
    format: str
    columns: Columns = field(default_factory=Columns)
    holds_chats: bool = False
    rules: RowRules = field(default_factory=RowRules)
    problem: str | None = None
    """Reason why no row of the file can be read, None for a readable file."""
    encoding: str | None = None
    """Encoding of the content, None for UTF-8."""
    split: Literal["train", "val"] | None = None
    """Split that all documents of the file belong to, None where their hashes decide."""


@dataclass(frozen=True)
class FoundFiles:
    """The files of sources in a stable order. `lines` say what a person would not expect, and what is left out."""

    files: Sequence[SourceFile]
    lines: Sequence[str]


def find_files(
    sources: Sequence[str],
    rules: RowRules | None = None,
    choice: FileRules | None = None,
    leave_out: Collection[Path] = (),
) -> FoundFiles:
    """Find the readable files of sources, without those below the folders of `leave_out`.

    Raises ValueError where a source is missing or holds no such file, and on a pattern that matches none.
    """
    choice = choice or FileRules()
    files: list[SourceFile] = []
    lines, patterns = [], set()
    for source in sources:
        found, listing = _list_source(source, choice, leave_out)
        patterns |= listing.patterns
        if listing.description:
            lines.append(f"{source}: left out: {listing.description}")
        if not found:
            raise ValueError(f"{source}: found no readable file{_instead(source, listing)}, expected {EXPECTED}")
        files += [replace(file, rules=rules or RowRules()) for file in found]
    for name in ("include", "exclude"):
        for pattern in getattr(choice, name):
            if pattern not in patterns:
                raise ValueError(
                    f"{name}: {pattern!r} matches no file in the folders of {' '.join(sources)}; correct it"
                )
    if choice.splits == "auto":
        files = _assign_splits(files, lines)
    files = [_inspect(file, choice.encoding) for file in files]
    if choice.encoding is not None and not any(file.encoding for file in files):
        lines.append(f"encoding {choice.encoding}: not used, because every file is UTF-8 or says what it is")
    return FoundFiles(files, lines)


def _instead(source: str, listing: Listing) -> str:
    if listing.description:
        return f" (left out: {listing.description})"
    return " (the folder is empty)" if Path(source).is_dir() else ""


def _list_source(source: str, choice: FileRules, leave_out: Collection[Path]) -> tuple[list[SourceFile], Listing]:
    """Return the files of a source in a stable order, and what its folders hold."""
    if source == STDLIB and not Path(source).exists():
        root = Path(sysconfig.get_paths()["stdlib"])
        names = (path.relative_to(root) for path in root.rglob("*.py"))
        wanted = sorted(name for name in names if not _STDLIB_LEFT_OUT & set(name.parts))
        return [SourceFile(source, root / name, f"{STDLIB}/{name.as_posix()}", "text") for name in wanted], Listing()
    path = Path(source)
    if path.is_dir():
        listing = list_folder(path, choice, [folder.resolve() for folder in leave_out])
        found = [
            SourceFile(source, file, printable(file.relative_to(path)), file_format)
            for file, file_format in listing.files
        ]
        return found, listing
    if path.is_file():
        return [SourceFile(source, path, printable(Path(path.name)), format_of(path) or "text")], Listing()
    if not path.exists() and glob.has_magic(source) and (names := sorted(glob.glob(source, recursive=True))):
        listing, files = Listing(), []
        for name in names:
            inner, inner_listing = _list_source(name, choice, leave_out)
            files += inner
            listing.add(inner_listing)
        return files, listing
    if path.exists():
        raise ValueError(f"{source}: is neither a file nor a folder, expected {EXPECTED}")
    raise ValueError(f"{source}: no such file or folder")


def _assign_splits(files: list[SourceFile], lines: list[str]) -> list[SourceFile]:
    """Return the files without those of a test split, and the others with their split. Add lines that say so."""
    # What was given by name has those next to it that were given too.
    paths = [(file.path, Path(file.source if file.source != STDLIB else file.path).parent) for file in files]
    found = find_roles(paths)
    roles: list[Role | None] = [None if each is None else each.role for each in found]
    groups = [_group(file, each) for file, each in zip(files, found, strict=True)]
    for group in dict.fromkeys(groups):
        members = [i for i in range(len(files)) if groups[i] == group]
        by_role: dict[Role, list[str]] = {}
        for i in members:
            if (role := roles[i]) is not None:
                by_role.setdefault(role, []).append(printable(files[i].path.relative_to(group)))
        if not by_role:
            continue
        words: dict[Role, str] = {"train": "trains on", "val": "holds out", "test": "leaves out"}
        said = ", ".join(f"{word} {_some(by_role[role])}" for role, word in words.items() if role in by_role)
        lines.append(f"{group}: holds the splits of a data set: {said}; --splits ignore reads all of it")
        if "val" in by_role:
            for i in members:
                files[i] = replace(files[i], split="val" if roles[i] == "val" else "train")
    if lonely := unmatched(paths, roles):
        names = _some([path.name for path in lonely])
        lines.append(f"{names}: read as any other file, because no file or folder next to it is named train")
    return [file for file, role in zip(files, roles, strict=True) if role != "test"]


def _group(file: SourceFile, found: Found | None) -> Path:
    """Return the folder whose files are split together: the one that was given, or that of what was given."""
    source = Path(file.source if file.source != STDLIB else file.path)
    is_inside = source.is_dir() and (found is None or found.part != source)
    return source if is_inside else source.parent


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _inspect(file: SourceFile, encoding: str | None) -> SourceFile:
    """Return the file with its encoding, and with the columns of its first rows."""
    if file.format != "parquet":
        try:
            found, unmarked = find_encoding(file.path, encoding)
            file = replace(file, encoding=found)
            if file.format == "jsonl" and not holds_lines(file.path, found, is_array=False):
                file = replace(file, format="json")
        except LostRestError as error:
            return replace(file, problem=str(error))
        except OSError as error:
            if error.errno is not None:
                raise
            unmarked = None  # the reader says what is damaged
        if unmarked is not None:
            return replace(file, problem=f"found NUL bytes, expected UTF-8; {advice(unmarked)}")
    if file.format == "text":
        return file
    first_rows = itertools.islice(read_rows(file.path, file.format, encoding=file.encoding), SNIFFED_ROWS)
    try:
        objects = (row.value for row in first_rows if isinstance(row, Row))
        columns, holds_chats = find_columns(objects, file.rules)
    except ValueError as error:
        way_out = f", or leave the file out with --exclude {file.name!r}" if Path(file.source).is_dir() else ""
        return replace(file, problem=f"{error}{way_out}")
    return replace(file, columns=columns, holds_chats=holds_chats)
