"""Cells of a row -> one conversation: a list of messages, or a question and its answer, with system and history."""

import math
import re
from collections.abc import Mapping
from typing import Any

from shared_tokenizer.chat.messages import Message
from shared_tokenizer.chat.parse import instruction_messages, is_message, parse_messages, system_message
from shared_tokenizer.sources.cells import parse_list, text_cell
from shared_tokenizer.sources.column_names import (
    CHAT_COLUMNS,
    HISTORY_COLUMN,
    OTHER_CHAT_COLUMNS,
    TOOLS_COLUMNS,
    find_pair,
    is_chat_name,
)
from shared_tokenizer.sources.row_rules import RowRules

_MESSAGES = re.compile(r"""\s*\[\s*\{\s*['"]""")
# An answer that begins and goes on like this calls a tool.
_CALL_BEGINS = ("[", "{", "<tool_call>", "<functioncall>")
_CALL_WORDS = ('"arguments"', '"parameters"')


def list_cell(value: object) -> list[Any] | None:
    """Return the list of messages of a cell: itself, or what its text or its lists spell; None for any other cell."""
    if isinstance(value, list):
        return value
    if isinstance(value, dict):
        return _from_lists(value)
    found = parse_list(value) if isinstance(value, str) and _MESSAGES.match(value) else None
    return found if found and all(map(is_message, found)) else None


def _from_lists(value: Mapping[str, Any]) -> list[Any] | None:
    """Return the messages of `{"role": [...], "content": [...]}`, as the datasets library holds them."""
    lists = [cell for cell in value.values() if isinstance(cell, list)]
    if not is_message(value) or len(lists) < len(value) or len({len(cell) for cell in lists}) > 1:
        return None
    return [dict(zip(value, cells, strict=True)) for cells in zip(*lists, strict=True)]


def read_chat(value: object, column: str, rules: RowRules) -> tuple[Message, ...]:
    """Return the conversation of a chat column. Raises ValueError where it holds none, and never reads it as a text."""
    if isinstance(value, str):
        found = parse_list(value)
        if found is None:
            raise ValueError(
                f"column {column!r}: found a text that is neither JSON nor Python's notation of messages, expected a "
                f"list of messages: {value[:40]!r}"
            )
        value = found
    if isinstance(value, list) and is_chat_name(column, CHAT_COLUMNS + OTHER_CHAT_COLUMNS):
        value = _as_messages(value)
    return parse_messages(value, roles=rules.roles_by_name)


def _as_messages(value: list[Any]) -> list[Any]:
    """Return messages of a list of texts in turn, of [question, answer] lists, or of objects with such a pair."""
    if value and all(isinstance(item, str) for item in value):
        return [_message("assistant" if i % 2 else "user", text) for i, text in enumerate(value)]
    if value and all(isinstance(item, list) and len(item) == 2 for item in value):
        return [message for item in value for message in (_message("user", item[0]), _message("assistant", item[1]))]
    if value and all(isinstance(item, dict) and not is_message(item) and len(item) == 2 for item in value):
        pairs = [find_pair(item) for item in value]
        if all(pairs):
            return [
                _message(role, item[name])
                for item, pair in zip(value, pairs, strict=True)
                for role, name in zip(("user", "assistant"), pair or (), strict=True)
            ]
    return value


def _message(role: str, content: object) -> dict[str, Any]:
    return {"role": role, "content": content}


def read_pair(
    question: object, context: object, answer: object, names: tuple[str, str, str], rules: RowRules
) -> tuple[Message, ...]:
    """Return the conversation of a question, an optional context and an answer; `names` are their columns.

    Question and answer may be lists of messages: those of the question are context only. Raises ValueError where a
    cell is neither.
    """
    if isinstance(context, float) and math.isnan(context):
        context = None  # an empty cell of a data frame
    asked, answered = list_cell(question), list_cell(answer)
    if asked is None and answered is None:
        texts = [text_cell(value, name) for value, name in ((question, names[0]), (answer, names[2]))]
        given = None if context is None else text_cell(context, names[1])
        return instruction_messages(texts[0], given or None, texts[1])
    if context:
        raise ValueError(f"column {names[1]!r}: found it beside a list of messages, expected the messages alone")
    if asked is None:
        asked = [_message("user", text_cell(question, names[0]))]
    if answered is None:
        answered = [_message("assistant", text_cell(answer, names[2]))]
    context_only = [{**message, "weight": 0} if isinstance(message, dict) else message for message in asked]
    return parse_messages([*context_only, *answered], roles=rules.roles_by_name)


def add_system(chat: tuple[Message, ...], value: object, column: str) -> tuple[Message, ...]:
    """Return a conversation with the system message of a column. Raises ValueError where it has another one already."""
    system = system_message(value if isinstance(value, list) else text_cell(value, column))
    if system and chat[0].role == "system":
        if chat[0].content.strip() != system[0].content.strip():
            raise ValueError(f"column {column!r}: found another system message than that of the messages, expected one")
        return chat
    return system + chat


def add_history(chat: tuple[Message, ...], value: object, rules: RowRules) -> tuple[Message, ...]:
    """Return a conversation with earlier turns, [question, answer] lists or messages, after its system message."""
    turns = parse_list(value) if isinstance(value, str) else value
    if not isinstance(turns, list):
        raise ValueError(f"column {HISTORY_COLUMN!r}: found {value!r:.40}, expected a list of [question, answer]")
    if not turns:
        return chat
    try:
        before = parse_messages(_as_messages(turns), roles=rules.roles_by_name)
    except ValueError as error:
        raise ValueError(f"column {HISTORY_COLUMN!r}: {error}") from error
    systems = 1 if chat[0].role == "system" else 0
    return chat[:systems] + before + chat[systems:]


def refuse_hidden_tools(chat: tuple[Message, ...], row: Mapping[str, Any]) -> None:
    """Raise ValueError where an answer calls a tool that a column describes and the conversation does not show."""
    column = next((name for name in TOOLS_COLUMNS if row.get(name)), None)
    if column is None:
        return
    for message in chat:
        calls = message.content.lstrip().startswith(_CALL_BEGINS) and any(w in message.content for w in _CALL_WORDS)
        if message.role == "assistant" and message.learned and calls:
            raise ValueError(
                f"column {column!r}: found tools that an answer calls and that no chat format here writes; put them "
                "into a system column, or leave such rows out"
            )
