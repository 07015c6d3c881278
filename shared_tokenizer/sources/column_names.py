"""The names of columns that are understood, in one table, and the choice among those of a row."""

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

# The first one of a row is read.
CHAT_COLUMNS = ("messages", "conversations")
# Also read where they hold a list; a text in them may be anything.
OTHER_CHAT_COLUMNS = ("conversation", "chat", "dialog")
TEXT_COLUMNS = ("text", "TEXT", "content", "message", "body")
QUESTION_COLUMNS = ("instruction", "instruct", "prompt", "question", "query", "problem")
ANSWER_COLUMNS = ("output", "response", "completion", "answer", "solution", "answers")
CONTEXT_COLUMNS = ("input", "context", "passage")
SYSTEM_COLUMNS = ("system", "system_prompt", "system_message")
HISTORY_COLUMN = "history"
# The chosen and the rejected one of two answers.
ANSWERS_COMPARED = (("chosen", "rejected"), ("chosen_response", "rejected_response"))
TOOLS_COLUMNS = ("tools", "functions", "available_tools")
# An answer that is read as a text where no other column could be its question.
LAST_COLUMN = "output"

# Question and answer. Those that belong together by their names come first, then every question with every answer, then
# names that mean a question only beside their answer.
PAIRS: tuple[tuple[str, str], ...] = tuple(
    dict.fromkeys(
        [
            ("instruction", "output"),
            ("instruction", "response"),
            ("prompt", "completion"),
            ("question", "answer"),
            ("query", "response"),
            ("problem", "solution"),
            *product(QUESTION_COLUMNS, ANSWER_COLUMNS),
            *product(("input",), ANSWER_COLUMNS),
            *product(("human", "user"), ("assistant", "bot")),
            ("inputs", "targets"),
            ("input", "target"),
            ("source", "target"),
        ]
    )
)

# Names of columns that say where a row comes from or how it is sorted, which is no question.
ORIGINS = frozenset(
    [
        "id",
        "idx",
        "index",
        "source",
        "url",
        "link",
        "path",
        "file",
        "filename",
        "repo",
        "author",
        "license",
        "date",
        "created",
        "timestamp",
        "split",
        "subset",
        "dataset",
        "category",
        "type",
        "kind",
        "label",
        "tag",
        "tags",
        "topic",
        "task",
        "language",
        "lang",
        "model",
        "difficulty",
        "quality",
        "score",
        "rating",
        "meta",
        "metadata",
    ]
)

COLUMNS_HELP = (
    f"Known names, the first found is read: chats in {', '.join(CHAT_COLUMNS + OTHER_CHAT_COLUMNS)}; questions in "
    f"{', '.join(QUESTION_COLUMNS)} with answers in {', '.join(ANSWER_COLUMNS)} and between them "
    f"{', '.join(CONTEXT_COLUMNS)}; input with output, human or user with assistant, inputs with targets, source with "
    f"target; pairs of answers in chosen and rejected; next to these {', '.join(SYSTEM_COLUMNS)}, {HISTORY_COLUMN}; "
    f"texts in {', '.join(TEXT_COLUMNS)}."
)


def find_pair(names: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the columns of question and answer, None where the names hold no such pair."""
    return next((pair for pair in PAIRS if pair[0] in names and pair[1] in names), None)


def is_chat_name(path: str, names: tuple[str, ...]) -> bool:
    """Return True if a column, or the last part of `a.b`, has one of these names, in capitals or not."""
    return path.rpartition(".")[2].lower() in names


def first_of(candidates: tuple[str, ...], names: Mapping[str, Any]) -> str | None:
    """Return the first candidate that is among the names."""
    return next((name for name in candidates if name in names), None)


def possible_questions(row: Mapping[str, Any], answer: str) -> Iterator[str]:
    """Yield the columns that could hold the question of an answer: words, in a column that is no known origin."""
    for name, value in row.items():
        is_origin = name.lower() in ORIGINS or name.lower().endswith(("_id", "id", "_url"))
        texts = value if isinstance(value, list) else [value]
        has_words = any(isinstance(text, str) and any(letter.isalpha() for letter in text) for text in texts)
        if name != answer and not is_origin and has_words:
            yield name
