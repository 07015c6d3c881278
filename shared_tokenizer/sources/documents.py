"""Sources of text -> documents: files, folders, and the source code of the Python standard library."""

import hashlib
import itertools
import json
import os
import sysconfig
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from shared_tokenizer.chat.messages import Message
from shared_tokenizer.sources.columns import Columns, find_columns, read_columns
from shared_tokenizer.sources.readers import ROW_SUFFIXES, TEXT_SUFFIXES, BadRow, Piece, Row, format_of, read_rows
from shared_tokenizer.sources.row_rules import RowRules

STDLIB = "stdlib"
SNIFFED_ROWS = 100
# A folder with this file is a directory that this project has written (shared_tokenizer.manifest), not a text.
SEAL = "MANIFEST.sha256"
# Tests repeat themselves, installed packages differ between machines, and the last two are tables of data.
_STDLIB_LEFT_OUT = {"test", "tests", "site-packages", "dist-packages", "encodings", "pydoc_data"}


@dataclass(frozen=True)
class Document:
    """One text or one chat. `name` says where it was read: a path, and a line or row number."""

    name: str
    content: str | tuple[Message, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        """Return the text, or the contents of the messages."""
        if isinstance(self.content, str):
            return (self.content,)
        return tuple(message.content for message in self.content)

    @property
    def text(self) -> str:
        """Return the content as one text."""
        return "\n".join(self.texts)

    @cached_property
    def _encoded(self) -> tuple[bytes, ...]:
        return tuple(text.encode("utf-8") for text in self.texts)

    @property
    def size_bytes(self) -> int:
        """Return the UTF-8 bytes of the texts. Raises UnicodeEncodeError where they hold lone surrogates."""
        return sum(map(len, self._encoded))

    @cached_property
    def digest(self) -> bytes:
        """Return the sha256 of the content, 32 bytes."""
        if isinstance(self.content, str):
            return hashlib.sha256(self._encoded[0]).digest()
        turns = [[message.role, message.content] for message in self.content]
        return hashlib.sha256(json.dumps(turns).encode()).digest()


@dataclass(frozen=True)
class Rejected:
    """A row that is not a document. `where` is its path and row number."""

    where: str
    reason: str


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


def read_documents(sources: Iterable[str], rules: RowRules | None = None) -> Iterator[Document]:
    """Yield the documents of files, folders and `stdlib` in a stable order, without the empty ones.

    Raises ValueError on a source that is missing or holds no text, and on the first row that cannot be read.
    """
    for source in sources:
        found = False
        for file in find_files(source, rules):
            for document in read_file(file):
                if isinstance(document, Rejected):
                    raise ValueError(f"{document.where}: {document.reason}")
                if any(document.texts):
                    found = True
                    yield document
        if not found:
            raise ValueError(f"{source}: found no text, expected {_EXPECTED}")


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
        raise ValueError(f"{source}: found no readable file, expected {_EXPECTED}")
    return files


_EXPECTED = (
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
        yield path, _printable(Path(path.name)), format_of(path) or "text"
    elif path.is_dir():
        for file in sorted(_walk(path)):
            if file_format := format_of(file):
                yield file, _printable(file.relative_to(path)), file_format
    else:
        raise ValueError(f"{source}: no such file or folder")


def _printable(path: Path) -> str:
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


def read_file(file: SourceFile, piece: Piece | None = None) -> Iterator[Document | Rejected]:
    """Yield the documents of a file, or of a piece of it, and its rejected rows."""
    path = _printable(file.path)
    if file.problem is not None:
        yield Rejected(path, file.problem)
        return
    for row in read_rows(file.path, file.format, piece):
        where = f"{path}:{row.number}" if row.number else path
        if isinstance(row, BadRow):
            yield Rejected(where, row.reason)
        else:
            yield to_document(row.value, file.columns, where, file.rules, holds_chats=file.holds_chats)


def to_document(row: Any, columns: Columns, where: str, rules: RowRules, *, holds_chats: bool) -> Document | Rejected:
    """Return the document of a row: a text, or an object with these columns. A bad row is returned as rejected."""
    try:
        document = Document(where, row if isinstance(row, str) else read_columns(row, columns))
        document.size_bytes  # noqa: B018 - raises on lone surrogates, which JSON can hold
    except UnicodeEncodeError:
        return Rejected(where, "found half a surrogate pair, expected Unicode text")
    except ValueError as error:
        return Rejected(where, str(error))
    if isinstance(document.content, str) == holds_chats:
        kinds = ("a chat", "a text") if holds_chats else ("a text", "a chat")
        return Rejected(where, f"found {kinds[1]}, expected {kinds[0]} as in the first rows")
    if any("\0" in text for text in document.texts):
        return Rejected(where, "found a NUL byte, expected text")
    return document


def cut_document(document: Document, characters: int) -> Iterator[Document]:
    """Yield pieces of a text, each of `characters` to twice as many, cut at line ends where possible.

    The pieces together are the text. A chat is never cut; `characters` 0 cuts nothing.
    """
    text = document.content
    if not characters or not isinstance(text, str):
        yield document
        return
    start = 0
    while start < len(text):
        end = text.find("\n", start + characters, start + 2 * characters) + 1 or start + 2 * characters
        yield Document(f"{document.name}:{start}", text[start:end])
        start = min(end, len(text))


def is_validation(document: Document, fraction: float) -> bool:
    """Return True if a document is held out. Its own hash decides, so other documents have no influence."""
    # Salted, because a data set that was split by its plain hash before has no small hashes left.
    digest = hashlib.sha256(b"held out" + document.digest).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64
