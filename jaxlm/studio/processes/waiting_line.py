"""The line before a model: people are answered in the order in which they came, a few at a time."""

import contextlib
from collections.abc import Callable, Iterator


class WaitingLine:
    """People who are answered or wait. `at_once` are answered at a time, and `longest` stand in the line at most."""

    def __init__(self, at_once: int = 1, longest: int = 64):
        self._at_once, self._longest = at_once, longest
        self._places: list[object] = []

    @contextlib.contextmanager
    def place(self) -> Iterator[Callable[[], int]]:
        """Hold a place at the end of the line. Raises ValueError where the line is full.

        Yields a function that returns how many people's answers have to end first: 0 where it is this one's turn.
        """
        if len(self._places) >= self._longest:
            raise ValueError(f"{len(self._places)} people wait for this model, the most that may; try again later")
        place = object()
        self._places.append(place)
        try:
            yield lambda: max(0, self._places.index(place) + 1 - self._at_once)
        finally:
            self._places.remove(place)
