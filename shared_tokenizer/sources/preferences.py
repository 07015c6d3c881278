"""Rows with a chosen and a rejected answer -> two conversations that differ from one answer of the assistant on."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from shared_tokenizer.chat.messages import Message
from shared_tokenizer.chat.parse import parse_messages
from shared_tokenizer.chat.rendered import parse_rendered
from shared_tokenizer.sources.cells import has_cell, text_cell
from shared_tokenizer.sources.column_names import ANSWERS_COMPARED, CONTEXT_COLUMNS, QUESTION_COLUMNS, first_of
from shared_tokenizer.sources.conversations import list_cell, read_chat, read_pair
from shared_tokenizer.sources.row_rules import RowRules

# Of a row that compares nothing, which is left out and counted under this name.
NoPair = Literal["unpaired", "equal_answers"]


class NoPairError(ValueError):
    """A row whose answers cannot be compared; `kind` is the name that it is counted under."""

    def __init__(self, kind: NoPair, message: str):
        super().__init__(message)
        self.kind: NoPair = kind


class PreferenceColumns(NamedTuple):
    """The columns of a row with two answers. `question` is None where the answers are whole conversations."""

    question: str | None
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Preference:
    """Two conversations. Learned are the assistant's turns from the first one that differs on."""

    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]


def find_preference(row: Mapping[str, Any]) -> PreferenceColumns | None:
    """Return the columns of two answers of which one is chosen, None where a row has no such columns.

    Raises ValueError where two columns may be the question of texts.
    """
    for chosen, rejected in ANSWERS_COMPARED:
        if chosen in row and rejected in row and not (_is_blank(row[chosen]) and _is_blank(row[rejected])):
            return PreferenceColumns(_question(row, chosen), chosen, rejected)
    return None


def _question(row: Mapping[str, Any], chosen: str) -> str | None:
    """Return the column of the question: one with a known name, or that of a context where it stands alone."""
    names = [name for name in dict.fromkeys(("prompt", *QUESTION_COLUMNS)) if not _is_blank(row.get(name))]
    texts = {name: row[name].strip() for name in names if isinstance(row[name], str)}
    if len(set(texts.values())) > 1 and isinstance(row[chosen], str):
        raise ValueError(
            f"found the columns {', '.join(texts)} beside {chosen}, and each may be the question, expected one; leave "
            "the others out of the rows"
        )
    found = {name: value for name, value in row.items() if not _is_blank(value)}
    return names[0] if names else first_of(CONTEXT_COLUMNS, found)


def read_preference(row: Mapping[str, Any], columns: PreferenceColumns, rules: RowRules) -> Preference:
    """Return the two conversations of a row.

    An answer is a text or a list of messages: those of a whole conversation, or those that follow the question. Without
    a question a text has to be a whole conversation that is written out. Raises NoPairError where an answer is missing
    or both are the same, ValueError where a cell cannot be understood.
    """
    for name, other in ((columns.chosen, columns.rejected), (columns.rejected, columns.chosen)):
        if _is_blank(row.get(name)):
            raise NoPairError("unpaired", f"column {name!r}: found no answer to compare with {other!r}")
    chosen, rejected = (_read_answer(row, columns, name, rules) for name in (columns.chosen, columns.rejected))
    return Preference(chosen, rejected)


def repeats_question(row: Mapping[str, Any], columns: PreferenceColumns) -> bool:
    """Return True if the question of a row is read: it precedes the answers, or whole conversations hold it too."""
    if columns.question is None or not has_cell(row, columns.question):
        return False
    messages = list_cell(row.get(columns.chosen))
    if messages is None or not _is_whole(messages, RowRules()):
        return True
    question = row[columns.question]
    asked = list_cell(question)
    if asked is not None:
        return messages[: len(asked)] == asked
    texts = [message.get("content", message.get("value")) for message in messages if isinstance(message, dict)]
    return isinstance(question, str) and question.strip() in [text.strip() for text in texts if isinstance(text, str)]


def _read_answer(row: Mapping[str, Any], columns: PreferenceColumns, name: str, rules: RowRules) -> tuple[Message, ...]:
    value = row[name]
    messages = list_cell(value)
    if messages is not None and _is_whole(messages, rules):
        return read_chat(messages, name, rules)
    question = None if columns.question is None else row.get(columns.question)
    if not _is_blank(question) and (whole := _written_out(value, question)) is not None:
        return whole
    if not _is_blank(question):
        return read_pair(question, None, value, (columns.question or "", "", name), rules)
    if messages is not None:
        raise ValueError(f"column {name!r}: found an answer without its question, expected the column prompt")
    found = parse_rendered(text_cell(value, name))
    if found is None:
        raise ValueError(
            f"column {name!r}: found a text without the column of its question, expected a column prompt, a list of "
            "messages, or a whole conversation that is written out"
        )
    return found[1]


def _written_out(value: object, question: object) -> tuple[Message, ...] | None:
    """Return the turns of an answer that is a whole conversation, written out with its question; None of any other."""
    if not isinstance(value, str) or not isinstance(question, str):
        return None
    found = parse_rendered(value)
    asked = question.strip()
    if found is None or not (value.strip().startswith(asked) or asked in [turn.content.strip() for turn in found[1]]):
        return None
    return found[1]


def _is_whole(messages: list[Any], rules: RowRules) -> bool:
    """Return True if messages begin with a turn of the user, after a system message."""
    turns = parse_messages(messages, needs_reply=False, roles=rules.roles_by_name)
    first = next((turn for turn in turns if turn.role != "system"), None)
    return first is not None and first.role == "user"


def _is_blank(value: object) -> bool:
    """Return True if a cell holds nothing; of a data frame that is a NaN."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or value == [] or (isinstance(value, str) and not value.strip())


def with_learned_difference(pair: Preference) -> Preference:
    """Return the conversations with what they share as context only.

    Raises NoPairError where they are the same, ValueError where they differ in another turn than the assistant's.
    """
    chosen, rejected = pair.chosen, pair.rejected
    if [(m.role, m.content) for m in chosen] == [(m.role, m.content) for m in rejected]:
        raise NoPairError("equal_answers", "found equal answers in chosen and rejected, expected different ones")
    shared = 0
    for one, other in zip(chosen, rejected, strict=False):
        if (one.role, one.content) != (other.role, other.content):
            break
        shared += 1
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        if shared == len(turns) or turns[shared].role != "assistant":
            found = "no turn" if shared == len(turns) else f"a turn of the {turns[shared].role}"
            raise ValueError(
                f"{name}: found {found} where the conversations begin to differ, turn {shared + 1}, expected an answer "
                "of the assistant after the same question"
            )
        if not any(turn.role == "assistant" and turn.learned for turn in turns[shared:]):
            raise ValueError(f"{name}: found an answer that is not to be learned, expected one to compare")
    return Preference(_as_context(chosen, shared), _as_context(rejected, shared))


def _as_context(turns: tuple[Message, ...], shared: int) -> tuple[Message, ...]:
    return tuple(replace(turn, learned=False) for turn in turns[:shared]) + turns[shared:]
