"""Signals as requests: SIGINT, SIGTERM, SIGHUP and a closed terminal or pipe ask the trainer to save and leave."""

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Self, TypeVar

from jaxlm.common.run.output_guard import OutputGuard

Result = TypeVar("Result")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# A closing terminal sends SIGHUP twice, a process manager SIGTERM again: the save goes on for so long.
GRACE_SECONDS = 30.0


class StopRequested(Exception):
    """A stop was asked for. It is raised out of work that cannot be finished quickly."""


class StopRequest:
    """A context in which the three signals set `requested` instead of ending the process.

    So does an error of standard output or error, which are then turned off. Later signals are ignored for
    `grace_seconds`, in which the run is saved; after that a signal acts as it does outside, for those who cannot wait.
    """

    def __init__(self, grace_seconds: float = GRACE_SECONDS) -> None:
        self.requested: str | None = None
        """Name of the signal that was received, SIGPIPE for a closed pipe; None before."""
        self._grace_seconds = grace_seconds
        self._deadline = 0.0
        self._before: dict[int, object] = {}
        self._output = OutputGuard(self._request)

    def __enter__(self) -> Self:
        for number in SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # started by nohup, which outlives its terminal
            self._before[number] = signal.signal(number, self._handle)
        self._output.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._output.__exit__()
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.requested is None:
            self._request(name)
        elif time.monotonic() >= self._deadline:
            self._restore()
            signal.raise_signal(number)

    def _request(self, name: str) -> None:
        if self.requested is None:
            self._deadline = time.monotonic() + self._grace_seconds
            self.requested = name

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
