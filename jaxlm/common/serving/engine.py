"""The thread that generates, its queue, and the way from its events to the event loop; a framework adds the model."""

import asyncio
import contextlib
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator

from jaxlm.common.openai_api.errors import ApiError, internal_error, log
from jaxlm.common.openai_api.tasks import Event, Finish, Task

RETRY_AFTER_S = 2
# Longer than one prefill step takes. After this time the process ends without waiting for the thread.
LONGEST_STOP_S = 5.0


class Generation:
    """A submitted task: the event loop reads its events, the engine's thread writes them."""

    def __init__(self, task: Task, timeout_s: float):
        self.task = task
        self.num_tokens = 0
        """Tokens generated so far; the engine's thread counts them."""
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time() + timeout_s
        self._timeout_s = timeout_s
        self._events: asyncio.Queue[Event | ApiError] = asyncio.Queue()
        self._cancelled = threading.Event()

    @property
    def cancelled(self) -> bool:
        """True if no client waits for it any more."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Tell the engine to drop it, and end a reader of its events with an error."""
        if not self.cancelled:
            self._cancelled.set()
            self._events.put_nowait(ApiError(499, "the client closed the request", code="cancelled"))

    def emit(self, event: Event | ApiError) -> None:
        """Send the next piece of text, or the end, from the engine's thread to the event loop."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server ends
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def events(self) -> AsyncIterator[Event]:
        """Yield the events as they come, a `Finish` last. Raises ApiError if it fails or takes too long."""
        while True:
            try:
                async with asyncio.timeout_at(self._deadline):
                    event = await self._events.get()
            except TimeoutError:
                self.cancel()
                message = f"found no end after {self._timeout_s:g} s, this server's limit; ask for fewer tokens"
                raise ApiError(504, message, code="timeout") from None
            if isinstance(event, ApiError):
                raise event
            yield event
            if isinstance(event, Finish):
                return


def _stopping() -> ApiError:
    return ApiError(503, "the server is stopping", code="stopping")


class CancelledGenerationError(Exception):
    """The current generation was cancelled, or the server stops."""


class Engine(ABC):
    """A thread that generates one task at a time; at most `max_queue` tasks wait.

    A cancelled generation ends at the next call of `check`.
    """

    def __init__(self, *, max_queue: int, timeout_s: float):
        self._max_queue, self._timeout_s = max_queue, timeout_s
        self._waiting: deque[Generation] = deque()
        self._current: Generation | None = None
        self._wake = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)

    @abstractmethod
    def generate(self, generation: Generation) -> Finish:
        """Generate a text and emit its pieces; the engine's thread calls it. Raises what `check` raises."""

    def check(self, generation: Generation) -> None:
        """Raise CancelledGenerationError if the generation was cancelled or the server stops."""
        if generation.cancelled or self._stopping:
            raise CancelledGenerationError

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End every generation with an error, and accept no more tasks."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
            left = [*self._waiting, *([self._current] if self._current else [])]
            self._waiting.clear()
        for generation in left:
            generation.emit(_stopping())

    def join(self) -> None:
        """Wait for the thread after `stop`."""
        self._thread.join(LONGEST_STOP_S)

    @property
    def is_alive(self) -> bool:
        """True while the thread runs."""
        return self._thread.is_alive()

    def submit(self, task: Task) -> Generation:
        """Put a task into the queue; call it from the event loop. Raises ApiError (503) if the queue is full."""
        generation = Generation(task, self._timeout_s)
        with self._wake:
            if self._stopping:
                raise _stopping()
            self._waiting = deque(waiting for waiting in self._waiting if not waiting.cancelled)
            if len(self._waiting) >= self._max_queue + (self._current is None):
                message = f"found {len(self._waiting)} requests waiting, the most that may wait; try again later"
                raise ApiError(503, message, code="queue_full", headers={"Retry-After": str(RETRY_AFTER_S)})
            self._waiting.append(generation)
            self._wake.notify()
        return generation

    def _run(self) -> None:
        while (generation := self._next()) is not None:
            try:
                generation.emit(self.generate(generation))
            except CancelledGenerationError:
                pass
            except Exception:
                log.exception("a generation failed")
                generation.emit(internal_error())

    def _next(self) -> Generation | None:
        with self._wake:
            self._current = None
            self._wake.wait_for(lambda: self._waiting or self._stopping)
            self._current = None if self._stopping else self._waiting.popleft()
            return self._current
