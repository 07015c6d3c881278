"""The thread that generates, its queue, and the way from its events to the event loop; a framework adds the model."""

import asyncio
import contextlib
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Sequence

from jaxlm.common.openai_api.errors import ApiError, internal_error, log
from jaxlm.common.openai_api.tasks import Event, Finish, Piece, Task

RETRY_AFTER_S = 2
# Longer than one prefill step takes. After this time the process ends without waiting for the thread.
LONGEST_STOP_S = 5.0


class Generation:
    """A submitted task: the event loop reads its events, the engine's thread writes them."""

    def __init__(self, task: Task, timeout_s: float, request: object = None):
        self.task = task
        self.request = request
        """Identity of the request, which all of its tasks share."""
        self.num_tokens = 0
        """Tokens generated so far; the engine's thread counts them."""
        self.cached_tokens = 0
        """Tokens of the prompt that were in memory, once it has ended."""
        self.first_token_at: float | None = None
        """Seconds of the monotonic clock at which the event loop had the first token."""
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
            if self.first_token_at is None and isinstance(event, Piece):
                self.first_token_at = time.monotonic()
            if isinstance(event, Finish):
                self.cached_tokens = event.cached_tokens
            yield event
            if isinstance(event, Finish):
                return


async def merged_events(generations: Sequence[Generation]) -> AsyncIterator[tuple[int, Event]]:
    """Yield the events of several generations as they come, with the number of the generation.

    Raises ApiError as soon as one fails.
    """
    if len(generations) == 1:
        async for event in generations[0].events():
            yield 0, event
        return
    arrived: asyncio.Queue[tuple[int, Event | ApiError]] = asyncio.Queue()

    async def forward(number: int, generation: Generation) -> None:
        try:
            async for event in generation.events():
                arrived.put_nowait((number, event))
        except ApiError as error:
            arrived.put_nowait((number, error))

    forwarding = [asyncio.create_task(forward(*pair)) for pair in enumerate(generations)]
    try:
        left = len(generations)
        while left:
            number, event = await arrived.get()
            if isinstance(event, ApiError):
                raise event
            left -= isinstance(event, Finish)
            yield number, event
    finally:
        for task in forwarding:
            task.cancel()


def _stopping() -> ApiError:
    return ApiError(503, "the server is stopping", code="stopping")


class Engine(ABC):
    """A thread that generates up to `max_running` texts; at most `max_queue` requests wait for it.

    A request may have several tasks: they are accepted or refused together, and count as one. Between two steps
    generations join and leave: a cancelled one ends after the current step.
    """

    def __init__(self, *, max_queue: int, max_running: int, timeout_s: float):
        self._max_queue, self._max_running, self._timeout_s = max_queue, max_running, timeout_s
        self._waiting: deque[Generation] = deque()
        self.running: list[Generation] = []
        """Generations that have begun; `take_waiting` and `finish` change it."""
        self._wake = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)

    def check(self, task: Task) -> None:
        """Raise ApiError (400) that names a setting which this engine does not have."""
        return

    def has_room(self, task: Task) -> bool:
        """Return True if the memory holds a task beside those that run; one that is alone always begins."""
        return True

    @property
    def prompt_store_bytes(self) -> int:
        """Bytes of the caches of earlier prompts; other threads may read it."""
        return 0

    @abstractmethod
    def step(self) -> None:
        """Begin what waits (`take_waiting`) where there is room, and do one step of what runs; the thread calls it.

        Generations that end leave `running`. An exception fails all generations that run.
        """

    @abstractmethod
    def reset(self) -> None:
        """Drop all work of the framework after an exception: what ran has failed."""

    @property
    def num_waiting(self) -> int:
        """Number of requests that wait."""
        with self._wake:
            return self._count_waiting()

    @property
    def is_stopping(self) -> bool:
        """True once `stop` was called."""
        return self._stopping

    def take_waiting(self) -> Generation | None:
        """Return the generation that has waited longest; it then runs. None where none waits, or as many run as may."""
        with self._wake:
            while self._waiting and self._waiting[0].cancelled:
                self._waiting.popleft()
            if not self._waiting or self._stopping or len(self.running) >= self._max_running:
                return None
            if self.running and not self.has_room(self._waiting[0].task):
                return None
            self.running.append(self._waiting.popleft())
            return self.running[-1]

    def finish(self, generation: Generation, event: Finish | ApiError | None) -> None:
        """End a generation that runs, with None if no client waits for it any more."""
        with self._wake:
            self.running.remove(generation)
            if event is not None and not self._stopping:
                generation.emit(event)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End every generation with an error, and accept no more tasks."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
            left = [*self._waiting, *self.running]
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

    def submit(self, *tasks: Task) -> list[Generation]:
        """Put the tasks of a request into the queue; call it from the event loop.

        Raises ApiError (503) if the queue is full.
        """
        for task in tasks:
            self.check(task)
        request = object()
        generations = [Generation(task, self._timeout_s, request) for task in tasks]
        with self._wake:
            if self._stopping:
                raise _stopping()
            self._waiting = deque(waiting for waiting in self._waiting if not waiting.cancelled)
            free = self._max_running - len(self.running)
            if (found := self._count_waiting()) >= self._max_queue + free:
                message = f"found {found} requests waiting, the most that may wait; try again later"
                raise ApiError(503, message, code="queue_full", headers={"Retry-After": str(RETRY_AFTER_S)})
            self._waiting.extend(generations)
            self._wake.notify()
        return generations

    def _count_waiting(self) -> int:
        return len({id(generation.request) for generation in self._waiting})

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                try:
                    self.step()
                except Exception:
                    log.exception("a step of the engine failed")
                    for generation in list(self.running):
                        self.finish(generation, internal_error())
                    self.reset()
        except Exception:
            log.exception("the engine has ended")
            self.stop()

    def _wait_for_work(self) -> bool:
        """Wait until there is something to do. Returns False where the engine stops."""
        with self._wake:
            self._wake.wait_for(lambda: self._waiting or self.running or self._stopping)
            return not self._stopping
