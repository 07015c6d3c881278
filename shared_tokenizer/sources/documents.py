"""Sources of text -> documents: texts, chats and pairs of chats, each with the place it was read from."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from shared_tokenizer.chat.messages import Message
from shared_tokenizer.chat.rendered import parse_rendered
from shared_tokenizer.readers.readers import read_rows
from shared_tokenizer.readers.rows import BadRow, Piece
from shared_tokenizer.sources.columns import Columns, read_columns, unused_columns
from shared_tokenizer.sources.file_rules import FileRules
from shared_tokenizer.sources.files import EXPECTED, SourceFile, find_files
from shared_tokenizer.sources.folders import printable
from shared_tokenizer.sources.preferences import NoPair, NoPairError, Preference
from shared_tokenizer.sources.row_rules import RowRules


@dataclass(frozen=True)
class Document:
    """One text, one chat or one pair of chats. `name` says where it was read: a path, and a line or row number."""

    name: str
    content: str | tuple[Message, ...] | Preference
    split: Literal["train", "val"] | None = None
    """Split that the layout of the source puts the document in, None where its hash decides."""
    unused: tuple[str, ...] = field(default=(), compare=False)
    """Names of the columns, and of keys of messages, that hold something and were not read."""
    form: str | None = field(default=None, compare=False)
    """Chat format that the text was written out in, where it became a chat."""

    @property
    def texts(self) -> tuple[str, ...]:
        """Return the text, or the contents of the messages: of a pair those of both chats."""
        if isinstance(self.content, str):
            return (self.content,)
        return tuple(message.content for chat in self.chats for message in chat)

    @property
    def chats(self) -> tuple[tuple[Message, ...], ...]:
        """Return the chat, or the chosen and the rejected one; none of a text."""
        if isinstance(self.content, Preference):
            return (self.content.chosen, self.content.rejected)
        return () if isinstance(self.content, str) else (self.content,)

    @property
    def kind(self) -> Literal["texts", "chats", "pairs"]:
        """Return what a set of such documents holds."""
        return ("texts", "chats", "pairs")[len(self.chats)]

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
        chats = [
            [[message.role, message.content, *([] if message.learned else ["context only"])] for message in chat]
            for chat in self.chats
        ]
        turns = chats if isinstance(self.content, Preference) else chats[0]
        return hashlib.sha256(json.dumps(turns).encode()).digest()


@dataclass(frozen=True)
class Rejected:
    """A row that is not a document. `where` is its path and row number."""

    where: str
    reason: str
    loses_rest: bool = False
    """True where the rest of the file cannot be read either."""
    kind: NoPair | None = None
    """Name that a row which compares nothing is counted under; None of a row that cannot be read."""


def read_documents(
    sources: Sequence[str],
    rules: RowRules | None = None,
    choice: FileRules | None = None,
    log: Callable[[str], None] | None = None,
) -> Iterator[Document]:
    """Yield the documents of files, folders and `stdlib` in a stable order, without the empty ones.

    `log` receives the lines about files that are left out.

    Pairs that compare nothing are left out. Raises ValueError on a source that is missing or holds no text, and on the
    first row that cannot be read.
    """
    found_files = find_files(sources, rules, choice)
    if log is not None:
        for line in found_files.lines:
            log(line)
    files = found_files.files
    empty = dict.fromkeys(file.source for file in files)
    for file in files:
        for document in read_file(file):
            if isinstance(document, Rejected):
                if document.kind is not None:
                    continue
                raise ValueError(f"{document.where}: {document.reason}")
            if any(document.texts):
                empty.pop(file.source, None)
                yield document
    for source in empty:
        raise ValueError(f"{source}: found no text, expected {EXPECTED}")


def read_file(file: SourceFile, piece: Piece | None = None) -> Iterator[Document | Rejected]:
    """Yield the documents of a file, or of a piece of it, and its rejected rows."""
    path = printable(file.path)
    if file.problem is not None:
        yield Rejected(path, file.problem, loses_rest=True)
        return
    for row in read_rows(file.path, file.format, piece, file.encoding):
        where = f"{path}:{row.number}" if row.number else path
        if isinstance(row, BadRow):
            yield Rejected(where, row.reason, row.loses_rest)
            continue
        found = to_document(row.value, file.columns, where, file.rules, holds_chats=file.holds_chats)
        yield replace(found, split=file.split) if file.split and isinstance(found, Document) else found


def to_document(row: Any, columns: Columns, where: str, rules: RowRules, *, holds_chats: bool) -> Document | Rejected:
    """Return the document of a row: a text, or an object with these columns. A bad row is returned as rejected."""
    try:
        if isinstance(row, str):
            document = Document(where, row)
        else:
            unused = tuple(dict.fromkeys(unused_columns(row, columns)))
            document = _parsed(Document(where, read_columns(row, columns, rules), unused=unused), rules)
        document.size_bytes  # noqa: B018 - raises on lone surrogates, which JSON can hold
    except NoPairError as error:
        return Rejected(where, str(error), kind=error.kind)
    except UnicodeEncodeError:
        return Rejected(where, "found half a surrogate pair, expected Unicode text")
    except ValueError as error:
        return Rejected(where, str(error))
    # Texts may stand among chats that were written out: each is known by its own markers.
    is_text = isinstance(document.content, str)
    if is_text == holds_chats and not (is_text and rules.reads_rendered):
        kinds = ("a chat", "a text") if holds_chats else ("a text", "a chat")
        return Rejected(where, f"found {kinds[1]}, expected {kinds[0]} as in the first rows")
    if any("\0" in text for text in document.texts):
        return Rejected(where, "found a NUL byte, expected text")
    return document


def _parsed(document: Document, rules: RowRules) -> Document:
    """Return a document that is a chat written out as its turns, any other as it is."""
    if not rules.reads_rendered or isinstance(document.content, Preference):
        return document
    # A question that is written out ends where its answer begins.
    text = document.content if isinstance(document.content, str) else "".join(document.texts)
    if isinstance(document.content, str) or len(document.content) == 2:
        found = parse_rendered(text)
        if found is not None:
            return replace(document, content=found[1], form=found[0].chat_format)
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
        # What was not read of the row counts once.
        unused = document.unused if start == 0 else ()
        yield replace(document, name=f"{document.name}:{start}", content=text[start:end], unused=unused)
        start = min(end, len(text))


def is_validation(document: Document, fraction: float) -> bool:
    """Return True if a document is held out, by its split or else by its own hash: others have no influence."""
    if document.split is not None:
        return document.split == "val"
    # Salted, because a data set that was split by its plain hash before has no small hashes left.
    digest = hashlib.sha256(b"held out" + document.digest).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64
