"""Files and folders as they would be read: kinds, columns, first rows, chats as turns, counts of a bounded sample."""

import itertools
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jaxlm.studio.reading.shown_text import shown, shown_line
from shared_tokenizer.chat.messages import Message
from shared_tokenizer.sources.documents import Document, Rejected, read_file
from shared_tokenizer.sources.file_rules import FileRules
from shared_tokenizer.sources.files import SourceFile, find_files
from shared_tokenizer.sources.row_rules import RowRules

_ROWS = 3
_FILES_SHOWN = 8
_TEXT_SHOWN = 600
_TURNS_SHOWN = 8
_SAMPLED_DOCUMENTS = 2000
_SAMPLED_SECONDS = 2.0
_PROBLEMS_SHOWN = 8


@dataclass(frozen=True)
class Turn:
    """One message of a chat."""

    role: str
    text: str
    learned: bool
    """True where the model learns to write it."""


@dataclass(frozen=True)
class FilePreview:
    """One file: its kind, the columns that are read, and its first documents."""

    name: str
    kind: str
    size: int
    columns: str
    unused: tuple[str, ...] = ()
    rows: tuple[str | tuple[Turn, ...], ...] = ()
    """Texts, or chats as turns."""
    problem: str | None = None


@dataclass
class TextPreview:
    """Content of sources. Counts are those of the first documents, `is_sample` says whether there are more."""

    files: list[FilePreview] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    """Files of each kind."""
    total_files: int = 0
    total_bytes: int = 0
    lines: list[str] = field(default_factory=list)
    """Lines about files that are left out, as `prepare` prints them."""
    documents: int = 0
    chats: int = 0
    duplicates: int = 0
    unreadable: int = 0
    problems: list[str] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    """Characters of each document that was counted."""
    is_sample: bool = False

    @property
    def middle_length(self) -> int:
        """Median of the lengths, 0 where there is no document."""
        return sorted(self.lengths)[len(self.lengths) // 2] if self.lengths else 0


def preview(sources: Sequence[str], rules: RowRules | None = None, choice: FileRules | None = None) -> TextPreview:
    """Look at sources, in bounded time. Raises ValueError where one is missing or holds no readable file."""
    found = find_files(sources, rules, choice)
    result = TextPreview(lines=[shown_line(line, 400) for line in found.lines], total_files=len(found.files))
    for file in found.files:
        result.kinds[file.format] += 1
        result.total_bytes += _size(file.path)
    result.files = [_preview_file(file) for file in _one_of_each_kind(found.files)]
    _count(found.files, result)
    return result


def _one_of_each_kind(files: Sequence[SourceFile]) -> list[SourceFile]:
    """Return a file of every format and set of columns first, then others, some in all."""
    kinds: dict[tuple[str, str, str | None], SourceFile] = {}
    for file in files:
        kinds.setdefault((file.format, str(file.columns), file.problem), file)
    chosen = list(kinds.values())[:_FILES_SHOWN]
    return chosen + [file for file in files if file not in chosen][: _FILES_SHOWN - len(chosen)]


def _preview_file(file: SourceFile) -> FilePreview:
    name, size = shown_line(file.name, 200), _size(file.path)
    if file.problem is not None:
        return FilePreview(name, file.format, size, "", problem=shown_line(file.problem, 600))
    documents = [row for row in itertools.islice(read_file(file), _ROWS) if isinstance(row, Document)]
    unused = tuple(dict.fromkeys(shown_line(column, 80) for document in documents for column in document.unused))
    columns = "" if file.format == "text" else shown_line(str(file.columns), 200)
    return FilePreview(name, file.format, size, columns, unused, tuple(map(_row, documents)))


def _row(document: Document) -> str | tuple[Turn, ...]:
    if isinstance(document.content, str):
        return _cut(document.content)
    return tuple(_turn(message) for chat in document.chats for message in chat[:_TURNS_SHOWN])


def _turn(message: Message) -> Turn:
    return Turn(message.role, _cut(message.content), message.role == "assistant" and message.learned)


def _cut(text: str) -> str:
    return shown(text[:_TEXT_SHOWN], 400) + (f" ... ({len(text):,} characters)" if len(text) > _TEXT_SHOWN else "")


def _count(files: Sequence[SourceFile], result: TextPreview) -> None:
    """Count the documents of the first files until the sample is full or the time is over."""
    end, seen = time.monotonic() + _SAMPLED_SECONDS, set[bytes]()
    for row in _interleaved(files):
        if result.documents >= _SAMPLED_DOCUMENTS or time.monotonic() > end:
            result.is_sample = True
            return
        if isinstance(row, Rejected):
            if row.kind is None:
                result.unreadable += 1
                if len(result.problems) < _PROBLEMS_SHOWN:
                    result.problems.append(shown_line(f"{row.where}: {row.reason}", 400))
            continue
        if not any(row.texts):
            continue
        result.documents += 1
        result.chats += bool(row.chats)
        result.duplicates += row.digest in seen
        seen.add(row.digest)
        result.lengths.append(sum(map(len, row.texts)))


def _interleaved(files: Sequence[SourceFile]) -> Iterator[Document | Rejected]:
    for file in files:
        yield from read_file(file)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
