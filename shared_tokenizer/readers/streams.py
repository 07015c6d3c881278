"""The content of a file as a stream of UTF-8 bytes: decompressed, converted from its encoding, and bounded."""

import codecs
import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow

from shared_tokenizer.readers import rows
from shared_tokenizer.readers.encodings import UTF8_MARK, kind_of_no_text, marked_encoding, unmarked_utf16
from shared_tokenizer.readers.rows import LostRestError

_COMPRESSIONS = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd"}
_BLOCK = 1 << 18
_LETTERS = bytes(range(0x41, 0x5B))
# Of zstd a frame that readers skip: parallel compressors begin with one.
_SKIPPED_FRAME = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")


def is_compressed(path: Path) -> bool:
    """Return True if the content is gzip or zstd; the name does not matter."""
    return _compression(path) is not None


def first_bytes(path: Path, count: int = 4) -> bytes:
    """Return the first bytes of a file, fewer if it is shorter."""
    with path.open("rb") as file:
        return file.read(count)


def _compression(path: Path) -> str | None:
    first = first_bytes(path)
    if _SKIPPED_FRAME.match(first):
        return "zstd"
    return next((name for name, magic in _COMPRESSIONS.items() if first.startswith(magic)), None)


@contextlib.contextmanager
def _decompressed(path: Path) -> Iterator[io.BufferedReader]:
    compression = _compression(path)
    with path.open("rb") as raw:
        if compression is None:
            yield raw
        else:
            # Unlike the stream readers of gzip and zstandard, arrow's raises an error on a truncated file.
            stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(raw), compression)
            yield io.BufferedReader(_Bounded(stream, rows.most_content_bytes(path.stat().st_size)), _BLOCK)


@contextlib.contextmanager
def open_content(path: Path, encoding: str | None = None, start: int = 0) -> Iterator[tuple[io.BufferedReader, int]]:
    """Open the content as UTF-8, after a byte-order mark. Yield the stream and its position, in bytes.

    `encoding` is that of a file without a mark, None for UTF-8. Only a file that is neither compressed nor converted
    can be opened at a `start`. Reading raises LostRestError where the content cannot be decoded, or is larger than
    the size of the file allows.
    """
    with _decompressed(path) as file:
        if start:
            file.seek(start)
            yield file, start
            return
        first = file.peek(4)[:4]
        if first.startswith(UTF8_MARK):
            file.read(len(UTF8_MARK))
            yield file, len(UTF8_MARK)
        elif (found := marked_encoding(first) or encoding) is not None:
            yield io.BufferedReader(_Converted(file, found), _BLOCK), 0
        else:
            yield file, 0


def find_encoding(path: Path, wanted: str | None) -> tuple[str | None, str | None]:
    """Return the encoding to read a file in, None for UTF-8, and the one that it seems to have without saying so.

    A mark decides, then the content, where it is UTF-8 beyond doubt, then the wanted encoding. Raises LostRestError
    where the file is of a kind that is no text.
    """
    with _decompressed(path) as file:
        first = file.peek(1 << 12)
        if (kind := kind_of_no_text(first)) is not None:
            raise LostRestError(f"found no text, expected a text file or rows: looks like {kind}")
        if first.startswith(UTF8_MARK):
            return None, None
        if (found := marked_encoding(first)) is not None:
            return found, None
        if wanted is None:
            return None, unmarked_utf16(first)
        decoder, is_ascii, holds_nul = codecs.getincrementaldecoder("utf-8")(), True, False
        while block := file.read(_BLOCK):
            try:
                is_ascii &= decoder.decode(block).isascii()
                holds_nul |= b"\0" in block  # as UTF-16 does, of which all bytes may be ASCII
            except UnicodeDecodeError:
                return wanted, None
        may_be_wanted = is_ascii and (holds_nul or _keeps_ascii(wanted))
        return (wanted if may_be_wanted or decoder.getstate()[0] else None), None


def _keeps_ascii(encoding: str) -> bool:
    """Return True if text in ASCII may be in this encoding too: ISO-2022-JP spells all by it, UTF-16 does not."""
    return _LETTERS.decode(encoding, "replace") == _LETTERS.decode("ascii")


def is_plain(path: Path, encoding: str | None) -> bool:
    """Return True if bytes of the content are bytes of the file: it is neither compressed nor converted."""
    first = first_bytes(path)
    return encoding is None and marked_encoding(first) is None and _compression(path) is None


class _Stream(io.RawIOBase):
    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._next(len(buffer))
        buffer[: len(block)] = block
        return len(block)

    def _next(self, size: int) -> bytes:
        """Return at most `size` bytes, none at the end."""
        raise NotImplementedError


class _Bounded(_Stream):
    """A decompressed stream of at most `most` bytes."""

    def __init__(self, stream: Any, most: int):
        self._stream, self._left = stream, most

    def _next(self, size: int) -> bytes:
        block = self._stream.read(size)
        self._left -= len(block)
        if self._left < 0:
            raise LostRestError(f"decompresses to more than {rows.MAX_EXPANSION:,} times the size of the file")
        return block


class _Converted(_Stream):
    """A stream of another encoding, as UTF-8."""

    def __init__(self, file: io.BufferedReader, encoding: str):
        self._file, self._encoding = file, encoding
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._ready, self._read = b"", 0

    def _next(self, size: int) -> bytes:
        while not self._ready:
            block = self._file.read(_BLOCK)
            try:
                text = self._decoder.decode(block, final=not block)
                self._ready = text.encode("utf-8")
            except UnicodeError as error:
                position = self._read + (error.start if isinstance(error, UnicodeDecodeError) else 0)
                raise LostRestError(f"not {self._encoding} near byte {position:,}: {error}") from error
            self._read += len(block)
            if not block:
                break
        found, self._ready = self._ready[:size], self._ready[size:]
        return found
