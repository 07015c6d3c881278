"""The verifiers that are built in, each a function (prompt, answer, row) -> reward."""

import re

from jaxlm.common.rewards.task import Row

OPENING = {"(": ")", "[": "]", "{": "}"}


def exact(prompt: str, answer: str, row: Row) -> float:
    """Return 1 where the answer is the row's "answer", without regard to spaces around it."""
    return float(answer.strip() == str(row["answer"]).strip())


def pattern(prompt: str, answer: str, row: Row) -> float:
    """Return 1 where the whole answer matches the row's "pattern", a regular expression."""
    return float(re.fullmatch(row["pattern"], answer.strip()) is not None)


def brackets(prompt: str, answer: str, row: Row) -> float:
    """Return 1 where the row's "open" brackets and the answer together are balanced, and the answer is brackets."""
    return float(is_balanced(row["open"] + answer.strip()))


def is_balanced(text: str) -> bool:
    """Return True if a text is brackets that close in the right order."""
    expected: list[str] = []
    for character in text:
        if character in OPENING:
            expected.append(OPENING[character])
        elif not expected or expected.pop() != character:
            return False
    return not expected
