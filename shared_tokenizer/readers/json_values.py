"""JSON -> rows: one value per line, arrays, or values one after another that span lines."""

import codecs
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from shared_tokenizer.readers import rows
from shared_tokenizer.readers.encodings import UTF8_MARK, explain_not_utf8
from shared_tokenizer.readers.rows import BadRow, LostRestError, Piece, Row, too_long
from shared_tokenizer.readers.streams import is_plain, open_content

_BLOCK = 1 << 20
# A token that the end of a block cuts in two makes an error at most so many characters before the end.
_LONGEST_TOKEN = 16
_SPACE = re.compile("[ \t\n\r\ufeff]*")


class _Decoder:
    """A JSON decoder that notes a key which an object holds twice: of its values only the last would be read."""

    def __init__(self):
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)
        self._twice: str | None = None

    def decode(self, text: str) -> Any:
        """Return the value that a text is. Raises JSONDecodeError where it is none."""
        self._twice = None
        return self._decoder.decode(text)

    def decode_at(self, text: str, position: int) -> tuple[Any, int]:
        """Return the value that begins at a position, and its end. Raises JSONDecodeError where there is none."""
        self._twice = None
        return self._decoder.raw_decode(text, position)

    @property
    def problem(self) -> str | None:
        """Return the reason why the last value is not read, None where it is."""
        return None if self._twice is None else f"found the key {self._twice!r} twice in an object, expected it once"

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            self._twice = next(key for key in counts if counts[key] > 1)
        return found


def read_lines(path: Path, piece: Piece, encoding: str | None) -> Iterator[Row | BadRow]:
    """Yield one JSON object per line."""
    number, limit, stop = piece.line - 1, rows.MAX_ROW_BYTES, piece.stop
    decoder = _Decoder()
    with open_content(path, encoding, piece.start) as (file, position):
        while stop is None or position < stop:
            line = file.readline(limit + 1)
            if not line:
                return
            number, position = number + 1, position + len(line)
            if len(line) > limit:
                position += _skip_line(file, line)
                yield BadRow(number, too_long())
                continue
            try:
                value = decoder.decode(line.decode("utf-8"))
            except (ValueError, RecursionError) as error:
                if line.strip():
                    yield from _read_odd_line(line, number, error)
                else:
                    blank = _skip_blank_lines(file, None if stop is None else stop - position)
                    number, position = number + blank, position + blank
                continue
            if decoder.problem is not None:
                yield BadRow(number, decoder.problem)
            else:
                yield Row(number, value) if type(value) is dict else _to_row(value, number)


def _skip_line(file: io.BufferedReader, line: bytes) -> int:
    """Read to the end of a line. Raise LostRestError where that is far away: it holds more than a row."""
    skipped, most = 0, (rows.SKIPPED_ROWS - 1) * rows.MAX_ROW_BYTES
    while line and not line.endswith(b"\n"):
        if skipped > most:
            raise LostRestError(f"one line is {rows.SKIPPED_ROWS} times {too_long()}, expected a JSON object per line")
        line = file.readline(rows.MAX_ROW_BYTES)
        skipped += len(line)
    return skipped


def _skip_blank_lines(file: io.BufferedReader, most: int | None) -> int:
    """Read the empty lines that follow, as far as they are in the buffer and at most so many. Return their number."""
    block = file.peek()[:most]
    return len(file.read(len(block) - len(block.lstrip(b"\n"))))


def _read_odd_line(line: bytes, number: int, error: Exception) -> Iterator[Row | BadRow]:
    """Yield the rows of a line that is not one JSON value: it has a byte-order mark, several values, or an error."""
    if isinstance(error, UnicodeDecodeError):
        yield BadRow(number, explain_not_utf8(line, error.start, f"{error.start} of the line"))
        return
    if isinstance(error, RecursionError):
        yield BadRow(number, "not JSON: nested more than the parser can follow")
        return
    if line.startswith(UTF8_MARK) or str(error).startswith("Extra data"):
        found = list(_Values(io.BytesIO(line.strip()), None).read())
        # One value and something else is a bad row; where several are lost with it, the message says so.
        if len(found) > 2 or not any(isinstance(row, BadRow) and row.loses_rest for row in found):
            yield from (replace(row, number=number) for row in found)
            return
    yield BadRow(number, f"not JSON: {error}")


def read_json(path: Path, piece: Piece, encoding: str | None) -> Iterator[Row | BadRow]:
    """Yield the objects of arrays, of lines, or of any values one after another."""
    if holds_lines(path, encoding, is_array=True):
        yield from read_lines(path, piece, encoding)
        return
    size = path.stat().st_size if is_plain(path, encoding) else None
    with open_content(path, encoding) as (file, _):
        yield from _Values(file, size).read()


def holds_lines(path: Path, encoding: str | None, *, is_array: bool) -> bool:
    """Return True if each line of a file is a JSON value of its own, False where values span lines.

    `is_array` tells that a beginning `[` is more likely an array than a damaged line.
    """
    with open_content(path, encoding) as (file, _):
        lines = iter(lambda: file.readline(rows.MAX_ROW_BYTES + 1), b"")
        filled = (line.strip() for line in lines if line.strip())
        first = next(filled, b"")
        if len(first) <= rows.MAX_ROW_BYTES:
            try:
                value = json.loads(first)
                return not isinstance(value, list) or is_chat(value) or not (is_array or _holds_rows(value))
            except RecursionError:
                return not is_array
            except json.JSONDecodeError as error:
                is_cut = error.pos >= len(error.doc.rstrip()) or first in (b"[", b"{")
            except ValueError:
                return True
            if not is_cut and not (is_array and first.startswith(b"[")):
                return True
        elif not first.startswith(b"["):
            return True
        if first in (b"[", b"{"):
            return False
        try:
            return isinstance(json.loads(next(filled, b"")), dict | list)  # then the first line is damaged
        except (ValueError, RecursionError):
            return False


def _holds_rows(value: list[Any]) -> bool:
    return any(isinstance(each, dict | list) for each in value)


def is_chat(value: list[Any]) -> bool:
    """Return True if a list is the messages of one chat."""
    return bool(value) and all(_is_message(each) for each in value)


def _is_message(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    return ("role" in value and ("content" in value or "tool_calls" in value)) or ("from" in value and "value" in value)


def _to_row(value: Any, number: int) -> Row | BadRow:
    if isinstance(value, dict):
        return Row(number, value)
    if isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
        return Row(number, {"messages": value})
    return BadRow(number, f"found a JSON {type(value).__name__}, expected an object")


class _Values:
    """The values of a stream, parsed one by one. `size` is that of the whole stream in bytes, None if not known."""

    def __init__(self, file: io.BufferedIOBase, size: int | None):
        self._file, self._size, self._json = file, size, _Decoder()
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._text, self._position, self._read, self._ended = "", 0, 0, False
        self._number = 0

    def read(self) -> Iterator[Row | BadRow]:
        """Yield the rows; the last one is bad where the parser cannot continue."""
        try:
            while first := self._peek():
                if first == "[":
                    yield from self._array()
                else:
                    yield self._next_row()
        except (ValueError, RecursionError) as error:
            why = "nested more than the parser can follow" if isinstance(error, RecursionError) else str(error)
            yield BadRow(self._number + 1, f"not JSON from here on: {why.partition(': line')[0]}; {self._lost()}", True)

    def _lost(self) -> str:
        at = self._read - len(self._text[self._position :].encode("utf-8", "surrogateescape"))
        if self._size is None:
            return f"all that follows byte {at:,} of the content is lost"
        return f"the {max(self._size - at, 0):,} bytes from byte {at:,} on are lost"

    def _array(self) -> Iterator[Row | BadRow]:
        self._position += 1
        messages: list[Any] | None = None
        start = self._number
        while (first := self._peek()) != "]":
            if not first:
                raise ValueError("the array has no end")
            row = self._next_row()
            if messages is None and self._number == start + 1 and isinstance(row, Row) and _is_message(row.value):
                messages = []
            if messages is None:
                yield row
            else:
                self._number = start
                if isinstance(row, BadRow) or not _is_message(row.value):
                    raise ValueError("found something else among the messages of a chat")
                messages.append(row.value)
                self._refuse_long_chat(messages)
            following = self._peek()
            if following == ",":
                self._position += 1
            elif following != "]":
                raise ValueError("expected ',' or ']'" if following else "the array has no end")
        self._position += 1
        if messages is not None:
            self._number = start + 1
            yield Row(self._number, {"messages": messages})

    def _refuse_long_chat(self, messages: list[Any]) -> None:
        if self._read > rows.MAX_ROW_BYTES + 2 * _BLOCK and len(messages) % 1000 == 0:
            raise ValueError(too_long("an array of messages is one chat, and this one is "))

    def _next_row(self) -> Row | BadRow:
        """Return the next value as a row."""
        value, text = self._next_value()
        self._number += 1
        if self._json.problem is not None:
            return BadRow(self._number, self._json.problem)
        if len(text) > rows.MAX_ROW_BYTES // 4 and len(text.encode("utf-8", "surrogatepass")) > rows.MAX_ROW_BYTES:
            return BadRow(self._number, too_long())
        if not text.isascii():
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                content, at = text.encode("utf-8", "surrogateescape"), len(text[: error.start].encode())
                return BadRow(self._number, explain_not_utf8(content, at, f"{at} of the row"))
        return _to_row(value, self._number)

    def _next_value(self) -> tuple[Any, str]:
        """Return the value at the position and its text, and go behind it. Raise ValueError where there is none."""
        while True:
            try:
                value, end = self._json.decode_at(self._text, self._position)
            except json.JSONDecodeError as error:
                is_open = error.msg.startswith("Unterminated") or error.pos > len(self._text) - _LONGEST_TOKEN
                if not is_open or not self._fill():
                    raise
            else:
                if end < len(self._text) or isinstance(value, dict | list) or not self._fill():
                    break
            if len(self._text) - self._position > rows.SKIPPED_ROWS * rows.MAX_ROW_BYTES:
                raise ValueError(f"one row is {rows.SKIPPED_ROWS} times {too_long()}")
        text = self._text[self._position : end]
        self._position = end
        return value, text

    def _peek(self) -> str:
        """Go to the next character that is not space, and return it; empty at the end."""
        while True:
            match = _SPACE.match(self._text, self._position)
            assert match is not None
            self._position = match.end()
            if self._position < len(self._text):
                return self._text[self._position]
            if not self._fill():
                return ""

    def _fill(self) -> bool:
        """Read on. Return False at the end."""
        rest = self._text[self._position :]
        block = self._file.read(max(_BLOCK, len(rest)))
        self._read += len(block)
        if self._ended:
            return False
        self._ended = not block
        self._text, self._position = rest + self._decoder.decode(block, final=not block), 0
        return True
