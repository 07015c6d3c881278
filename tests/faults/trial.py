"""One trial of the campaign: faults that were made on purpose, and whatever went wrong after them."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

What = Literal["lost", "silent", "crashed", "hung", "untidy"]
"""lost: work is gone, or the result is another one; silent: damage was taken without a word; crashed: a traceback, or
the process died; hung: no end in time; untidy: a message that names no file, or something left behind."""


@dataclass(frozen=True)
class Failure:
    """One thing that went wrong."""

    what: What
    text: str


@dataclass
class Outcome:
    """The result of a trial: how many faults were made, how many were refused or survived, and what went wrong."""

    tried: int = 0
    failures: list[Failure] = field(default_factory=list)
    places: Counter[str] = field(default_factory=Counter)
    """File or folder of the output that had changed last when a fault was made."""

    def fail(self, what: What, text: str) -> None:
        """Note something that went wrong."""
        self.failures.append(Failure(what, text))


Trial = Callable[[Any, Path, np.random.Generator], Outcome]
"""A function of the workplace, an empty folder of its own, and the source of all its random choices."""


@dataclass(frozen=True)
class Kind:
    """One kind of fault: a row of the table."""

    name: str
    trial: Trial
    share: float = 1.0
    """Part of the time of the whole campaign, in any unit."""
    limit_s: float = 120.0
    """Seconds after which a trial has hung."""
    once: bool = False
    """Run one trial only: it has no random choices."""
