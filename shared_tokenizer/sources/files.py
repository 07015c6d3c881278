"""A source by name -> its readable files, each with its format and columns."""

import itertools
import os
import sysconfig
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from shared_tokenizer.readers.readers import ROW_SUFFIXES, TEXT_SUFFIXES, format_of, read_rows
from shared_tokenizer.readers.rows import Row
from shared_tokenizer.sources.columns import Columns, find_columns
from shared_tokenizer.sources.row_rules import RowRules

STDLIB = "stdlib"
SNIFFED_ROWS = 100
# A folder with this file is a directory that this project has written (shared_tokenizer.manifest), not a text.
SEAL = "MANIFEST.sha256"
# Tests repeat themselves, installed packages differ between machines, and the last two are tables of data.
_STDLIB_LEFT_OUT = {"test", "tests", "site-packages", "dist-packages", "encodings", "pydoc_data"}


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


def find_files(source: str, rules: RowRules | None = None, leave_out: Collection[Path] = ()) -> list[SourceFile]:
    """Return the readable files of a source in a stable order, without those below the folders of `leave_out`.

    Raises ValueError where the source is missing or holds no such file.
    """
    files = [
        _inspect(SourceFile(source, path, name, file_format, rules=rules or RowRules()))
        for path, name, file_format in _list_files(source)
        if not any(path.resolve().is_relative_to(folder) for folder in leave_out)
    ]
    if not files:
        raise ValueError(f"{source}: found no readable file, expected {EXPECTED}")
    return files


EXPECTED = (
    f"a text file, a folder of them ({' '.join(sorted(TEXT_SUFFIXES))}), {' '.join(ROW_SUFFIXES)} "
    f"(.gz and .zst too) or {STDLIB!r}"
)


def _list_files(source: str) -> Iterator[tuple[Path, str, str]]:
    """Yield path, name and format of every file."""
    if source == STDLIB:
        root = Path(sysconfig.get_paths()["stdlib"])
        names = (path.relative_to(root) for path in root.rglob("*.py"))
        for name in sorted(name for name in names if not _STDLIB_LEFT_OUT & set(name.parts)):
            yield root / name, f"{STDLIB}/{name.as_posix()}", "text"
        return
    path = Path(source)
    if path.is_file():
        yield path, printable(Path(path.name)), format_of(path) or "text"
    elif path.is_dir():
        for file in sorted(_walk(path)):
            if file_format := format_of(file):
                yield file, printable(file.relative_to(path)), file_format
    else:
        raise ValueError(f"{source}: no such file or folder")


def printable(path: Path) -> str:
    """Return a path as UTF-8 text; bytes that are not UTF-8 are escaped."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def _walk(folder: Path) -> Iterator[Path]:
    """Yield every file below a folder, without sealed directories (shard sets, models)."""
    for root, folders, names in os.walk(folder):
        if SEAL in names:
            folders.clear()
        else:
            yield from (path for name in names if (path := Path(root, name)).is_file())


def _inspect(file: SourceFile) -> SourceFile:
    """Return the file with the columns of its first rows."""
    if file.format == "text":
        return file
    first_rows = itertools.islice(read_rows(file.path, file.format), SNIFFED_ROWS)
    try:
        objects = (row.value for row in first_rows if isinstance(row, Row))
        columns, holds_chats = find_columns(objects, file.rules)
    except ValueError as error:
        return replace(file, problem=str(error))
    return replace(file, columns=columns, holds_chats=holds_chats)
