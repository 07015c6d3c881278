"""CSV and TSV -> rows. A quote that swallows lines is counted as the lines that it swallows."""

import csv
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from shared_tokenizer.readers import rows
from shared_tokenizer.readers.encodings import explain_not_utf8
from shared_tokenizer.readers.rows import BadRow, LostRestError, Piece, Row, too_long
from shared_tokenizer.readers.streams import open_content

_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")
_COMPARED_LINES = 50
_BLOCK = 1 << 16


def read_csv(path: Path, piece: Piece, encoding: str | None, delimiter: str = ",") -> Iterator[Row | BadRow]:
    """Yield a CSV file's rows as objects of strings, by the names of its header."""
    with open_content(path, encoding) as (file, _):
        yield from _Table(file, delimiter).read()


def read_tsv(path: Path, piece: Piece, encoding: str | None) -> Iterator[Row | BadRow]:
    """Yield the rows of a file whose columns are separated by tabulators."""
    return read_csv(path, piece, encoding, "\t")


class _Table:
    """The rows of one file. A row is a record, which spans several lines where a field does."""

    def __init__(self, file: io.BufferedReader, delimiter: str):
        csv.field_size_limit(min(rows.MAX_ROW_BYTES, sys.maxsize))
        self._file, self._delimiter = file, delimiter
        # Where the names stand after a space, so do the cells, also those in quotes.
        names = file.peek(_BLOCK).partition(b"\n")[0].split(delimiter.encode())[1:]
        is_spaced = bool(names) and all(name.startswith(b" ") for name in names)
        self._reader = csv.reader(self._lines(), delimiter=delimiter, strict=True, skipinitialspace=is_spaced)
        self._record_bytes = 0
        self._header: list[str] = []
        self._number_columns: set[int] = set()

    def _lines(self) -> Iterator[str]:
        """Yield lines. Invalid bytes become surrogates, so that the error names the row that holds them."""
        while block := self._file.read(_BLOCK):
            rest = self._file.readline(rows.MAX_ROW_BYTES + 1)
            if len(rest) > rows.MAX_ROW_BYTES:
                raise LostRestError(f"one row is {too_long()}")
            # Some programs end lines with a carriage return alone.
            for line in (block + rest).splitlines(keepends=True):
                self._record_bytes += len(line)
                if self._record_bytes > 2 * rows.MAX_ROW_BYTES:
                    raise LostRestError(f"one row is {too_long()}")
                yield line.decode("utf-8", "surrogateescape")

    def read(self) -> Iterator[Row | BadRow]:
        while True:
            before, self._record_bytes = self._reader.line_num, 0
            try:
                values = next(self._reader)
            except StopIteration:
                return
            except (csv.Error, LostRestError) as error:
                spanned = self._reader.line_num - before
                if isinstance(error, LostRestError) or any(word in str(error) for word in ("end of data", "limit")):
                    yield BadRow(before + 1, self._lost(error, before + 1), loses_rest=True)
                    return
                why = f"not CSV: {error}"
                if spanned > 1:
                    why += f"; a quote that opens in line {before + 1} takes in the lines to {before + spanned}"
                yield from (BadRow(line, why) for line in range(before + 1, before + spanned + 1))
                continue
            if not self._header:
                if values:
                    self._header = _names([values[0].removeprefix("\ufeff"), *values[1:]])
                    if problem := self._header_problem():
                        yield BadRow(before + 1, problem, loses_rest=True)
                        return
            elif values:
                yield from self._rows(values, before + 1, self._reader.line_num - before)

    def _lost(self, error: Exception, line: int) -> str:
        """Return the reason why no row can be read from a line on."""
        lost = self._reader.line_num - line + 1
        if isinstance(error, csv.Error) and "limit" not in str(error):
            return f"not CSV: a quote that opens in line {line} is never closed, so {lost} lines are lost"
        return f"not CSV: {error}; perhaps a quote is not closed; all lines from {line} on are lost"

    def _header_problem(self) -> str | None:
        header = self._header
        if any("\0" in name for name in header):
            return "found NUL bytes in the header, expected text; the file may be UTF-16 (--encoding utf-16-le)"
        if not "".join(header).isprintable() or any("\udc80" <= letter <= "\udcff" for letter in "".join(header)):
            content = self._delimiter.join(header).encode("utf-8", "surrogateescape")
            try:
                content.decode("utf-8")
            except UnicodeDecodeError as error:
                return explain_not_utf8(content, error.start, f"{error.start} of the header")
        if len(set(header)) < len(header):
            return f"found a column name twice in the header {header}, expected each name once"
        other = next((mark for mark in ";|\t," if mark in header[0]), None)
        if len(header) == 1 and other is not None:
            name = {"\t": ", or name it NAME.tsv", ",": ", or name it NAME.csv"}.get(other, "")
            return (
                f"found columns separated by {other!r}, expected {self._delimiter!r}; save the file with that "
                f"separator{name}"
            )
        return None

    def _rows(self, values: list[str], line: int, spanned: int) -> Iterator[Row | BadRow]:
        """Yield a record as one row, or as many bad rows as its lines where those are rows of their own."""
        if values[0].startswith("\ufeff"):
            values = [values[0].removeprefix("\ufeff"), *values[1:]]
            if _names(values) == self._header:
                return  # a second file that was appended to the first, with its header
        if len(values) != len(self._header):
            why = f"found {len(values)} fields, expected the {len(self._header)} of the header"
            yield from (BadRow(line + i, why) for i in range(spanned))
            return
        if spanned > 1 and self._swallows_rows(values):
            why = f"a quote that opens in line {line} closes in line {line + spanned - 1}, so lines between are lost"
            yield from (BadRow(line + i, why) for i in range(spanned))
            return
        bad = next((value for value in values if not value.isascii() and _holds_bytes(value)), None)
        if bad is not None:
            content = bad.encode("utf-8", "surrogateescape")
            at = next(i for i, letter in enumerate(bad) if "\udc80" <= letter <= "\udcff")
            at = len(bad[:at].encode("utf-8"))
            yield BadRow(line, explain_not_utf8(content, at, f"{at} of a field"))
            return
        if spanned == 1:
            numbers = {i for i, value in enumerate(values) if _NUMBER.fullmatch(value)}
            self._number_columns = numbers & self._number_columns if self._number_columns else numbers
        yield Row(line, dict(zip(self._header, values, strict=True)))

    def _swallows_rows(self, values: list[str]) -> bool:
        """Return True if all lines inside of a field look like rows: as many fields, numbers where rows have them."""
        # The first record tells by its own fields where rows have numbers.
        numbers = self._number_columns or {i for i, value in enumerate(values) if _NUMBER.fullmatch(value)}
        inner = [line.split(self._delimiter) for value in values for line in value.splitlines()[1:]]
        last = len(inner) - 1  # it ends with the quote, so its last fields are outside
        return (
            bool(inner)
            and bool(numbers)
            and all(
                (len(fields) == len(values) or (i == last and 1 < len(fields) < len(values)))
                and all(_NUMBER.fullmatch(fields[column]) for column in numbers if column < len(fields))
                for i, fields in enumerate(inner[:_COMPARED_LINES])
            )
        )


def _names(header: list[str]) -> list[str]:
    """Return the names of the columns: without the spaces around them, and as pandas numbers those that have none."""
    return [name.strip(" ") or f"Unnamed: {column}" for column, name in enumerate(header)]


def _holds_bytes(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False
