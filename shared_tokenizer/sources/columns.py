"""Columns of a row -> the text, the chat or the pair of chats that they hold; what is not read is named.

A column that could change what is learned is used or refused by name. `unused_columns` names all others.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from shared_tokenizer.chat.messages import Message
from shared_tokenizer.chat.parse import ROLES, is_message, unused_keys
from shared_tokenizer.chat.rendered import parse_rendered
from shared_tokenizer.sources.cells import get_cell, has_cell, text_cell
from shared_tokenizer.sources.column_names import (
    ANSWER_COLUMNS,
    CHAT_COLUMNS,
    CONTEXT_COLUMNS,
    HISTORY_COLUMN,
    LAST_COLUMN,
    OTHER_CHAT_COLUMNS,
    QUESTION_COLUMNS,
    SYSTEM_COLUMNS,
    TEXT_COLUMNS,
    find_pair,
    first_of,
    is_chat_name,
    possible_questions,
)
from shared_tokenizer.sources.conversations import (
    add_history,
    add_system,
    list_cell,
    read_chat,
    read_pair,
    refuse_hidden_tools,
)
from shared_tokenizer.sources.preferences import (
    Preference,
    PreferenceColumns,
    find_preference,
    read_preference,
    repeats_question,
    with_learned_difference,
)
from shared_tokenizer.sources.row_rules import RowRules


@dataclass(frozen=True)
class Columns:
    """The columns that are read: either `content`, or `instruction`, an optional `input` and `answer`.

    With `rejected` the answer is the chosen one of two; `instruction` is None where both are whole conversations.
    `beside` are the system and history columns of the first rows; later rows are searched for them too.
    """

    content: str | None = None
    instruction: str | None = None
    input: str | None = None
    answer: str | None = None
    beside: tuple[str, ...] = ()
    # Not shown, because sets of the hub are known again by this text; those of pairs have a mark of their own.
    rejected: str | None = field(default=None, repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the columns, in the order in which they are read."""
        found = (*self.beside, self.content, self.instruction, self.input, self.answer, self.rejected)
        return tuple(name for name in found if name)

    @property
    def preference(self) -> PreferenceColumns | None:
        """Return the columns of a pair of answers, None where no pairs are read."""
        if self.rejected is None:
            return None
        assert self.answer is not None
        return PreferenceColumns(self.instruction, self.answer, self.rejected)

    def __str__(self) -> str:
        return " + ".join(self.names)


def choose_columns(row: Mapping[str, Any]) -> Columns | None:
    """Return the columns to read of a row, None where no name is known.

    Raises ValueError where the columns are known and may mean two things, or nothing that is learned here.
    """
    found = {name: value for name, value in row.items() if value is not None}
    if (pair := find_preference(row)) is not None:
        return Columns(instruction=pair.question, answer=pair.chosen, rejected=pair.rejected)
    chat = first_of(CHAT_COLUMNS, found) or next(
        (name for name in OTHER_CHAT_COLUMNS if list_cell(found.get(name)) is not None), None
    )
    if chat:
        _refuse_label(found, (chat,))
        return Columns(content=chat)
    _refuse_ratings(found)
    _refuse_single_messages(found)
    text, pair = first_of(TEXT_COLUMNS, found), find_pair(found)
    if pair is None:
        return _choose_text(found, text)
    if text is not None and found[text] != "" and not _repeats(found[text], [found[name] for name in pair]):
        raise _ambiguous(text, "+".join(pair), "a text and as a question with its answer")
    _refuse_second_question(found, pair)
    context = first_of(tuple(name for name in CONTEXT_COLUMNS if name not in pair), found)
    return Columns(instruction=pair[0], input=context, answer=pair[1])


def _choose_in_lower_case(row: Mapping[str, Any]) -> Columns | None:
    """Return the columns to read where known names are written in capitals, as `Question` and `Answer`."""
    written = {name.lower(): name for name in row}
    if len(written) < len(row):
        return None
    with contextlib.suppress(ValueError):  # which would name the columns in lower case
        found = choose_columns({name.lower(): value for name, value in row.items()})
        if found is not None:
            read = {name: getattr(found, name) for name in ("content", "instruction", "input", "answer", "rejected")}
            return replace(found, **{name: written[column] for name, column in read.items() if column})
    return None


def _choose_text(found: Mapping[str, Any], text: str | None) -> Columns | None:
    answer = next((name for name in ANSWER_COLUMNS if isinstance(found.get(name), str)), None)
    if text is not None:
        if answer is not None:
            raise _ambiguous(text, f"{text}+{answer}", "a text and as the question of an answer")
        return Columns(content=text)
    if answer is not None and (question := next(possible_questions(found, answer), None)) is not None:
        raise _ambiguous(answer, f"{question}+{answer}", "a text and as the answer of a question")
    return Columns(content=LAST_COLUMN) if LAST_COLUMN in found else None


def _ambiguous(single: str, joined: str, meanings: str) -> ValueError:
    columns = ", ".join(dict.fromkeys([single, *joined.split("+")]))
    return ValueError(
        f"found the columns {columns}, which can be read as {meanings}; choose with "
        f"--text_column {single} or --text_column {joined}"
    )


def _refuse_ratings(found: Mapping[str, Any]) -> None:
    """Raise ValueError where the row rates answers, of which the worse would be learned too."""
    pair = find_pair(found)
    if pair is not None:
        _refuse_label(found, pair)


def _refuse_label(found: Mapping[str, Any], columns: tuple[str, ...]) -> None:
    label = found.get("label")
    # A CSV file holds it as a text.
    if isinstance(label, bool) or (isinstance(label, str) and label.lower() in ("true", "false")):
        raise ValueError(
            f"found the columns {', '.join(columns)} and a label of true or false, which rates answers, expected "
            f"answers to learn; leave the false ones out, then --text_column {'+'.join(columns)}"
        )


def _refuse_single_messages(found: Mapping[str, Any]) -> None:
    """Raise ValueError where a row is one message of a conversation, which would be learned as a text of its own."""
    role = next((name for name in ("role", "from") if name in found), None)
    if role is None or not is_message(found) or str(found[role]).lower() not in ROLES:
        return
    content = first_of(("content", "value", "text"), found)
    raise ValueError(
        f"found the columns {role} and {content}, which are one message of a conversation, expected a conversation per "
        f'row: {{"messages": [...]}}; --text_column {content} learns each message as a text of its own'
    )


def _refuse_second_question(found: Mapping[str, Any], pair: tuple[str, str]) -> None:
    for name in QUESTION_COLUMNS:
        if name in found and name != pair[0] and isinstance(found[name], str) and found[name].strip():
            texts = [str(found[pair[0]]), str(found[name])]
            if not _repeats(texts[0], texts[1:]) and not _repeats(texts[1], texts[:1]):
                raise ValueError(
                    f"found the columns {pair[0]} and {name} beside {pair[1]}, and both may be the question; choose "
                    f"with --text_column {pair[0]}+{pair[1]}, --text_column {name}+{pair[1]} or --text_column "
                    f"{pair[0]}+{name}+{pair[1]}"
                )


def _repeats(text: object, parts: list[Any]) -> bool:
    """Return True if a text holds all parts, as a chat that is written out does."""
    return isinstance(text, str) and all(isinstance(part, str) and part.strip() in text for part in parts)


def find_columns(rows: Iterable[Mapping[str, Any]], rules: RowRules) -> tuple[Columns, bool]:
    """Return the columns of the first row that has known ones, and True if they hold chats.

    `rules.text_column` names the column instead. Raises ValueError where rows have columns, but none of them is known,
    or their meaning is not certain.
    """
    names: dict[str, None] = {}
    rows = iter(rows)
    for row in rows:
        if rules.text_column is not None:
            columns = _named_columns(rules.text_column, row)
        else:
            columns = choose_columns(row) or _choose_in_lower_case(row)
        if columns is not None:
            holds_chats = columns.content is None or list_cell(get_cell(row, columns.content)) is not None
            if not holds_chats and rules.reads_rendered:
                return columns, any(_is_rendered(other, columns) for other in (row, *rows))
            return (_with_side_columns(columns, [row, *rows]) if holds_chats else columns), holds_chats
        names |= dict.fromkeys(_all_names(row))
    if names:
        wanted = "a known name; set text_column" if rules.text_column is None else repr(rules.text_column)
        raise ValueError(f"found the columns {', '.join(names)}, expected {wanted}")
    return Columns(content="text"), False  # no row can be read: each one becomes an error of its own


def _is_rendered(row: Mapping[str, Any], columns: Columns) -> bool:
    assert columns.content is not None
    text = get_cell(row, columns.content) if has_cell(row, columns.content) else None
    return isinstance(text, str) and parse_rendered(text) is not None


def _all_names(row: Mapping[str, Any]) -> Iterator[str]:
    for name, value in row.items():
        yield from [f"{name}.{key}" for key in value] if isinstance(value, dict) and value else [name]


def _named_columns(given: str, row: Mapping[str, Any]) -> Columns | None:
    """Return the columns that `a`, `a.b`, `question+answer` or `question+context+answer` names, None without them."""
    if has_cell(row, given):
        return Columns(content=given)
    parts = [part.strip() for part in given.split("+")]
    if len(parts) not in (2, 3) or not has_cell(row, parts[0]) or not has_cell(row, parts[-1]):
        return None
    return Columns(instruction=parts[0], input=parts[1] if len(parts) == 3 else None, answer=parts[-1])


def _with_side_columns(columns: Columns, rows: Iterable[Mapping[str, Any]]) -> Columns:
    """Return the columns with the system and history columns of any of the rows, in this order."""
    found = {name for row in rows for name in _side_columns(row, columns)}
    beside = tuple(name for name in (*SYSTEM_COLUMNS, HISTORY_COLUMN) if name in found)
    return replace(columns, beside=beside)


def _side_columns(row: Mapping[str, Any], columns: Columns) -> Iterator[str]:
    """Yield the first system column of a row and its history."""
    read = (columns.content, columns.instruction, columns.input, columns.answer, columns.rejected)
    system = next((name for name in SYSTEM_COLUMNS if row.get(name) and name not in read), None)
    if system is not None:
        yield system
    if row.get(HISTORY_COLUMN) and HISTORY_COLUMN not in read:
        yield HISTORY_COLUMN


def read_columns(
    row: Mapping[str, Any], columns: Columns, rules: RowRules | None = None
) -> str | tuple[Message, ...] | Preference:
    """Return the text, the chat or the pair of chats of a row.

    Raises ValueError where a column is missing or cannot be understood, NoPairError where a pair compares nothing.
    """
    rules = rules or RowRules()
    if (names := columns.preference) is not None:
        pair = read_preference(row, names, rules)
        sides = [_with_side_cells(chat, row, columns, rules) for chat in (pair.chosen, pair.rejected)]
        return with_learned_difference(Preference(*sides))
    if columns.content is None:
        assert columns.instruction and columns.answer
        _refuse_later_label(row, (columns.instruction, columns.answer), rules)
        context = _context_column(row, columns)
        cells = [get_cell(row, name) for name in (columns.instruction, columns.answer)]
        given = None if context is None or not has_cell(row, context) else get_cell(row, context)
        chat = read_pair(cells[0], given, cells[1], (columns.instruction, context or "", columns.answer), rules)
    else:
        value = get_cell(row, columns.content)
        messages = list_cell(value)
        if messages is None and not is_chat_name(columns.content, CHAT_COLUMNS):
            return text_cell(value, columns.content)
        _refuse_later_label(row, (columns.content,), rules)
        chat = read_chat(value if messages is None else messages, columns.content, rules)
    return _with_side_cells(chat, row, columns, rules)


def _refuse_later_label(row: Mapping[str, Any], columns: tuple[str, ...], rules: RowRules) -> None:
    """Raise ValueError where a row rates its answer, which the first rows did not, unless the columns were named."""
    if rules.text_column is None:
        _refuse_label(row, columns)


def _with_side_cells(
    chat: tuple[Message, ...], row: Mapping[str, Any], columns: Columns, rules: RowRules
) -> tuple[Message, ...]:
    """Return a conversation with the system message and the history of its row."""
    for name in _side_columns(row, columns):
        chat = add_history(chat, row[name], rules) if name == HISTORY_COLUMN else add_system(chat, row[name], name)
    refuse_hidden_tools(chat, row)
    return chat


def _context_column(row: Mapping[str, Any], columns: Columns) -> str | None:
    """Return the context column: that of the first rows, or one that only later rows have."""
    if columns.input is not None or (columns.instruction, columns.answer) != find_pair(row):
        return columns.input
    return first_of(tuple(name for name in CONTEXT_COLUMNS if name != columns.instruction), row)


def unused_columns(row: Mapping[str, Any], columns: Columns) -> Iterator[str]:
    """Yield the columns of a row, and the keys of its messages, that hold something and are not read."""
    read = (columns.content, columns.instruction, columns.answer, columns.rejected)
    used = set(read)
    if columns.preference is not None:
        used -= set() if repeats_question(row, columns.preference) else {columns.instruction}
    elif columns.content is None:
        used.add(_context_column(row, columns))
    cells = [name for name in read if name and has_cell(row, name)]
    chats = {name: messages for name in cells if (messages := list_cell(get_cell(row, name))) is not None}
    if columns.content is None or chats or is_chat_name(columns.content, CHAT_COLUMNS):
        used.update(_side_columns(row, columns))
    for name, value in row.items():
        if name in used or value is None or value == "" or value == [] or value == {}:
            continue
        nested = [path for path in used if path and path.startswith(f"{name}.") and path not in row]
        if not nested:
            yield name
        elif isinstance(value, dict):
            read = {path.removeprefix(f"{name}.").partition(".")[0] for path in nested}
            yield from (f"{name}.{key}" for key in value if key not in read)
    for name, messages in chats.items():
        yield from (f"{name}[].{key}" for key in unused_keys(messages))
