"""The rows of the tasks that are built in: made up, always the same, shuffled."""

import calendar
import itertools
import random
import string
from collections.abc import Callable

from jaxlm.common.rewards.task import Row
from jaxlm.common.rewards.verifiers import OPENING

# Rows of a task whose prompts are drawn.
_DRAWN_ROWS = 4000


def addition() -> list[Row]:
    """Return all sums of two numbers of two digits, written with three digits: every answer is as long."""
    numbers = range(10, 100)
    return [{"prompt": f"{a}+{b}=", "answer": f"{a + b:03}"} for a, b in itertools.product(numbers, numbers)]


def reversing() -> list[Row]:
    """Return words of three to six letters to write backwards."""
    words = _drawn(lambda rng: "".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 6))))
    return [{"prompt": f"reverse {word}=", "answer": word[::-1]} for word in words]


def sorting() -> list[Row]:
    """Return three to five digits to sort."""
    lists = _drawn(lambda rng: " ".join(rng.choices(string.digits, k=rng.randint(3, 5))))
    return [{"prompt": f"sort {digits}=", "answer": " ".join(sorted(digits.split()))} for digits in lists]


def brackets() -> list[Row]:
    """Return rows of brackets that are not closed, to close."""
    return [
        {"prompt": f"close {text}=", "open": text, "answer": "".join(OPENING[each] for each in _left_open(text))[::-1]}
        for text in _drawn(_begun_brackets)
    ]


def dates() -> list[Row]:
    """Return dates to write as year-month-day, with or without zeros before single digits."""
    rows: list[Row] = []
    for text in _drawn(lambda rng: f"{rng.randint(1, 28)} {rng.randint(1, 12)} {rng.randint(1900, 2099)}"):
        day, month, year = map(int, text.split())
        rows.append(
            {
                "prompt": f"{day} {calendar.month_name[month]} {year}=",
                "answer": f"{year}-{month:02}-{day:02}",
                "pattern": f"{year}-0?{month}-0?{day}",
            }
        )
    return rows


def functions() -> list[Row]:
    """Return Python functions to write, with their unit tests."""
    rows: list[Row] = []
    operators = {"plus": "+", "minus": "-", "times": "*"}
    for (word, sign), number in itertools.product(operators.items(), range(1, 100)):
        name = f"{word}_{number}"
        values = [(x, x + number if sign == "+" else x - number if sign == "-" else x * number) for x in (0, 3, -7)]
        rows.append(
            {
                "prompt": f'def {name}(x):\n    """Return x {word} {number}."""\n',
                "answer": f"    return x {sign} {number}\n",
                "tests": [f"assert {name}({x}) == {y}" for x, y in values],
            }
        )
    return rows


# Name -> rows, and the name of the verifier.
TASKS: dict[str, tuple[Callable[[], list[Row]], str]] = {
    "addition": (addition, "exact"),
    "reversing": (reversing, "exact"),
    "sorting": (sorting, "exact"),
    "brackets": (brackets, "brackets"),
    "dates": (dates, "pattern"),
    "functions": (functions, "unit_tests"),
}


def shuffled_rows(name: str) -> list[Row]:
    """Return the rows of a task, in an order that is always the same."""
    rows = TASKS[name][0]()
    random.Random(0).shuffle(rows)
    return rows


def _drawn(draw: Callable[[random.Random], str]) -> list[str]:
    """Return different texts, drawn in the same way every time."""
    rng, found = random.Random(0), dict[str, None]()
    while len(found) < _DRAWN_ROWS:
        found[draw(rng)] = None
    return list(found)


def _begun_brackets(rng: random.Random) -> str:
    text, left_open = "", list[str]()
    for _ in range(rng.randint(4, 12)):
        if left_open and rng.random() < 0.4:
            text += OPENING[left_open.pop()]
        else:
            left_open.append(rng.choice(list(OPENING)))
            text += left_open[-1]
    return text if left_open else text + "("


def _left_open(text: str) -> list[str]:
    """Return the brackets of a text that are not closed, in order."""
    found: list[str] = []
    for character in text:
        if character in OPENING:
            found.append(character)
        else:
            found.pop()
    return found
