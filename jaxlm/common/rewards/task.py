"""A task: prompts, and the function that rewards answers to them."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# A row of a task: its "prompt", and whatever the verifier reads besides.
Row = Mapping[str, Any]
# (prompt, answer, row) -> reward. The answer is the model's text after the prompt.
Verifier = Callable[[str, str, Row], float]


class VerifierFault(Exception):
    """A verifier has not rewarded one answer: it raised, was too slow, or ended. `kind` is the word for the count."""

    def __init__(self, kind: str, reason: str):
        super().__init__(reason)
        self.kind = kind


@dataclass(frozen=True)
class Task:
    """Prompts to train on and to hold out, and their verifier."""

    name: str
    train: Sequence[Row]
    held_out: Sequence[Row]
    verifier: Verifier

    @property
    def fingerprint(self) -> str:
        """Return the sha256 of the rows, as hex."""
        rows = [[dict(row) for row in split] for split in (self.train, self.held_out)]
        return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


@dataclass
class Grades:
    """The rewards of some answers. An answer at which the verifier failed has reward 0 and is counted."""

    rewards: np.ndarray
    """float32 `[N]`."""
    faults: Counter[str] = field(default_factory=Counter)
    """Answers at which the verifier failed, by kind: raised, too_slow, ended."""
    first_fault: str = ""


def grade(verifier: Verifier, rows: Sequence[Row], answers: Sequence[str]) -> Grades:
    """Return the reward of each answer to the prompt of its row.

    Where the verifier raises or hangs, the reward is 0 and the fault is counted. Raises ValueError where it returns
    something that is no finite number, and where it fails at every answer of several.
    """
    grades = Grades(np.zeros(len(answers), np.float32))
    for number, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        try:
            grades.rewards[number] = checked_reward(verifier(row["prompt"], answer, row), row["prompt"], answer)
        except VerifierFault as fault:
            grades.faults[fault.kind] += 1
            grades.first_fault = grades.first_fault or f"{fault} (at answer {answer[:80]!r})"
    if len(answers) > 1 and grades.faults.total() == len(answers):
        raise ValueError(
            f"verifier: found no reward for any of {len(answers)} answers, the first time because "
            f"{grades.first_fault}; correct the verifier"
        )
    return grades


def checked_reward(value: Any, prompt: str, answer: str) -> float:
    """Return a reward as a float. Raises ValueError where it is no finite number."""
    try:
        reward = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError):
        reward = math.nan
    if not math.isfinite(reward):
        raise ValueError(
            f"verifier: found {value!r} for the answer {answer[:80]!r} to {prompt[:80]!r}, expected a finite number"
        )
    return reward
