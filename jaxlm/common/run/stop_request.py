"""Signals as requests: SIGINT, SIGTERM and SIGHUP ask the trainer to save and leave."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Self, TypeVar

Result = TypeVar("Result")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequested(Exception):
    """A stop was asked for. It is raised out of work that cannot be finished quickly."""


class StopRequest:
    """A context in which the three signals set `requested` instead of ending the process.

    A second signal acts as it does outside, for those who cannot wait.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        """Name of the signal that was received, or None."""
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def check(self) -> None:
        """Raise StopRequested if a stop was asked for."""
        if self.requested:
            raise StopRequested(self.requested)

    def watch(self, work: Callable[[], Result]) -> Result:
        """Run `work`, which may block for minutes inside a compiler, and notice a stop within 0.1 s.

        Raises StopRequested and leaves the work to a daemon thread: a compilation cannot be cancelled.
        """
        results: list[Result] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                results.append(work())
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(0.1)
            self.check()
        if errors:
            raise errors[0]
        return results[0]
