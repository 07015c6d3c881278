"""Settings of a task -> its rows and its verifier."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jaxlm.common.help import nearest
from jaxlm.common.rewards.built_in import TASKS, shuffled_rows
from jaxlm.common.rewards.games import GAMES
from jaxlm.common.rewards.own_verifier import OwnVerifier
from jaxlm.common.rewards.task import Row, Task, Verifier
from jaxlm.common.rewards.unit_tests import UnitTests
from jaxlm.common.rewards.verifiers import brackets, exact
from shared_tokenizer.settings import check_unchanged, setting

VERIFIER_SECONDS = 5.0
# Name -> how to make it, and the column that it reads. An expression of elsewhere may take forever: it runs in a child.
VERIFIERS: dict[str, tuple[Callable[[float], Verifier], str]] = {
    "exact": (lambda seconds: exact, "answer"),
    "pattern": (lambda seconds: OwnVerifier("jaxlm.common.rewards.verifiers:pattern", seconds), "pattern"),
    "brackets": (lambda seconds: brackets, "open"),
    "unit_tests": (lambda seconds: UnitTests(), "tests"),
}


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """The prompts that are sampled and the verifier of the answers."""

    task: str | None = setting(None, group="task", basic=True, more_help=f" One of {', '.join((*TASKS, *GAMES))}.")
    """Task that is built in, with its prompts and its verifier; or a game that the model plays with itself."""
    prompts: str | None = setting(None, group="task", basic=True)
    """Prompts of your own in place of a task: a jsonl file, whose rows have a "prompt" and what the verifier reads."""
    held_out_prompts: str | None = setting(None, group="task")
    """jsonl file of prompts to evaluate on; by default some of prompts."""
    num_held_out: int = setting(200, group="task", at_least=1)
    """Prompts held out for evaluation, at most a fifth of them."""
    verifier: str | None = setting(None, group="task", basic=True)
    """Function (prompt, answer, row) -> reward of your own, as path/to/file.py:function; or exact (the row's answer),
    pattern (its regular expression), brackets, unit_tests (its tests); by default that of the task."""
    verifier_seconds: float = setting(VERIFIER_SECONDS, group="task", more_than=0)
    """Time of one call of a verifier; a slower one gives no reward."""


def open_task(settings: TaskSettings) -> Task:
    """Return the task of some settings. Raises ValueError where there is none, or a file of it cannot be used."""
    if (settings.task is None) == (settings.prompts is None):
        found = "neither" if settings.task is None else "both"
        raise ValueError(f"task, prompts: found {found}, expected one of the two")
    if settings.prompts is None:
        assert settings.task is not None
        if settings.task not in TASKS:
            hint = nearest(settings.task, (*TASKS, *GAMES)) or f", expected one of {', '.join(TASKS)}"
            raise ValueError(f"task: found {settings.task!r}{hint}")
        check_unchanged(settings, ("held_out_prompts",), "without prompts")
        name, rows = settings.task, shuffled_rows(settings.task)
        verifier = settings.verifier or TASKS[settings.task][1]
    else:
        if settings.verifier is None:
            raise ValueError("verifier: found none with prompts, expected path/to/file.py:function or a built-in one")
        name, verifier = settings.prompts, settings.verifier
        rows = read_rows(Path(settings.prompts))
        if settings.held_out_prompts is None:
            random.Random(0).shuffle(rows)
    if settings.held_out_prompts is not None:
        train, held_out = rows, read_rows(Path(settings.held_out_prompts))
    else:
        count = min(settings.num_held_out, len(rows) // 5)
        if count == 0:
            raise ValueError(f"{name}: found {len(rows)} prompts, expected at least 5, of which one is held out")
        train, held_out = rows[count:], rows[:count]
    return Task(name, train, held_out, open_verifier(verifier, settings.verifier_seconds, [*train, *held_out]))


def open_verifier(name: str, seconds: float, rows: list[Row]) -> Verifier:
    """Return a verifier by its name, or one of the user's own.

    Raises ValueError where there is none, or where a row has not what it reads.
    """
    if name in VERIFIERS:
        make, column = VERIFIERS[name]
        for row in rows:
            if not row.get(column):
                raise ValueError(
                    f"verifier {name}: found no {column!r} in the row of prompt {row['prompt'][:60]!r}, expected one "
                    "in every row"
                )
        return make(seconds)
    if ":" not in name:
        hint = nearest(name, VERIFIERS) or f", expected path/to/file.py:function, or one of {', '.join(VERIFIERS)}"
        raise ValueError(f"verifier: found {name!r}{hint}")
    return OwnVerifier(name, seconds)


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a jsonl file. Raises ValueError, naming the line, where one has no prompt."""
    rows: list[Row] = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: found a line that is not JSON ({error}), line {number}") from error
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
            raise ValueError(f'{path}: found no "prompt" that is text, line {number}; expected one in every row')
        rows.append(row)
    if not rows:
        raise ValueError(f"{path}: found no rows, expected prompts")
    return rows
