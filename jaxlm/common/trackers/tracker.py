"""The interface of trackers: each takes the numbers, texts and pictures of one run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class TrackedRun:
    """Facts of a run that a tracker is told before its numbers."""

    name: str
    group: str
    """Name of the folder that the run lies in: that of a study, for example."""
    config: Mapping[str, Any]
    """All settings, as plain values."""
    directory: Path
    """Folder of the tracker's own files inside the run directory; it need not exist yet."""
    first_step: int
    """Steps after this one are still to come. Of steps that a kill took back, nothing is in metrics.jsonl."""


class Tracker(Protocol):
    """An open record of a run in one program. Any method may raise any error: the trainer goes on without it."""

    sent: int
    """Step up to which the record held everything when it was opened; 0 for a record that is written anew."""

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Add numbers of a step; steps never fall."""
        ...

    def text(self, step: int, name: str, text: str) -> None:
        """Add a text, which is data: nothing in it is markup."""
        ...

    def picture(self, step: int, name: str, path: Path) -> None:
        """Add a PNG."""
        ...

    def close(self, *, failed: bool) -> None:
        """Write out everything and end the record."""
        ...
