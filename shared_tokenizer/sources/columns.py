"""Columns of a row -> the text or the chat that they hold; the columns are found by well-known names."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from shared_tokenizer.chat.messages import Message, instruction_messages, parse_messages
from shared_tokenizer.sources.row_rules import RowRules

CHAT_COLUMNS = ("messages", "conversations")
TEXT_COLUMNS = ("text", "TEXT", "content", "message", "body")
INSTRUCTION_COLUMNS = ("instruction", "instruct", "prompt", "question")
INPUT_COLUMNS = ("input", "context")
ANSWER_COLUMNS = ("output", "response", "completion", "answer")
LAST_COLUMN = "output"


@dataclass(frozen=True)
class Columns:
    """The columns that are read: either `content`, or `instruction`, an optional `input` and `answer`."""

    content: str | None = None
    instruction: str | None = None
    input: str | None = None
    answer: str | None = None

    def __str__(self) -> str:
        return self.content or " + ".join(name for name in (self.instruction, self.input, self.answer) if name)


def choose_columns(names: Iterable[str]) -> Columns | None:
    """Return the columns to read among those of a source, None where no name is known."""
    present = set(names)
    for name in (*CHAT_COLUMNS, *TEXT_COLUMNS):
        if name in present:
            return Columns(content=name)
    instruction, answer = _first(INSTRUCTION_COLUMNS, present), _first(ANSWER_COLUMNS, present)
    if instruction and answer:
        return Columns(instruction=instruction, input=_first(INPUT_COLUMNS, present), answer=answer)
    return Columns(content=LAST_COLUMN) if LAST_COLUMN in present else None


def find_columns(rows: Iterable[Mapping[str, Any]], rules: RowRules) -> tuple[Columns, bool]:
    """Return the columns of the first row that has known ones, and True if they hold chats.

    `rules.text_column` names the column instead. Raises ValueError where rows have columns, but none of them is known.
    """
    names: dict[str, None] = {}
    text_column = rules.text_column
    for row in rows:
        columns = choose_columns(row) if text_column is None else Columns(content=text_column)
        if columns and (columns.content is None or columns.content in row):
            return columns, columns.content is None or isinstance(_content(row, columns.content), list)
        names |= dict.fromkeys(row)
    if names:
        wanted = "expected a known name; set text_column" if text_column is None else f"expected {text_column!r}"
        raise ValueError(f"found the columns {', '.join(names)}, {wanted}")
    return Columns(content="text"), False  # no row can be read: each one becomes an error of its own


def _first(names: Iterable[str], present: set[str]) -> str | None:
    return next((name for name in names if name in present), None)


def read_columns(row: Mapping[str, Any], columns: Columns) -> str | tuple[Message, ...]:
    """Return the text or the chat of a row. Raises ValueError where a column is missing or has another type."""
    if columns.content is None:
        assert columns.instruction and columns.answer
        given = None if columns.input is None else row.get(columns.input)
        if given is not None and not isinstance(given, str):
            raise ValueError(f"column {columns.input!r}: found a {type(given).__name__}, expected a string")
        return instruction_messages(_text(row, columns.instruction), given or None, _text(row, columns.answer))
    value = _content(row, columns.content)
    return parse_messages(value) if isinstance(value, list) else _text(row, columns.content)


def _content(row: Mapping[str, Any], column: str) -> Any:
    """Return the value of a column. Messages that are written as JSON text, as in a CSV file, are parsed."""
    value = row.get(column)
    if column in CHAT_COLUMNS and isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _text(row: Mapping[str, Any], column: str) -> str:
    if column not in row:
        raise ValueError(f"no column {column!r}, found {', '.join(map(repr, row)) or 'none'}")
    value = row[column]
    if not isinstance(value, str):
        raise ValueError(f"column {column!r}: found a {type(value).__name__}, expected a string")
    return value
