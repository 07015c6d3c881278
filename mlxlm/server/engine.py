"""The one thread that generates, request after request, and the queue before it."""

import asyncio
import contextlib
import copy
import threading
from collections import deque
from collections.abc import AsyncIterator, Generator
from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx
from mlx_lm.models.cache import can_trim_prompt_cache

from jaxlm.common.sampling import Sampling
from mlxlm.generate import sample_tokens
from mlxlm.model.language_model import LanguageModel
from mlxlm.server.errors import ApiError, internal_error, log
from mlxlm.server.prompt_store import PromptStore
from mlxlm.server.reply_text import ReplyText

RETRY_AFTER_S = 2
# Longer than a step of a prompt takes; the process ends without the thread where it is not enough.
LONGEST_STOP_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Task:
    """What to generate: a prompt that fits the model, and what ends the text.

    `reply` makes text of the tokens; it is written to by the engine's thread alone.
    """

    prompt: list[int]
    sampling: Sampling
    stop_ids: frozenset[int]
    reply: ReplyText


@dataclass(frozen=True)
class Finish:
    """How a generation ended; tokens that came out of the model, and those of the prompt it had seen before."""

    reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


class Generation:
    """One task on its way through the engine, as the event loop sees it."""

    def __init__(self, task: Task, timeout_s: float):
        self.task = task
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time() + timeout_s
        self._timeout_s = timeout_s
        self._events: asyncio.Queue[str | Finish | ApiError] = asyncio.Queue()
        self._cancelled = threading.Event()

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Let the engine drop it, and whoever still reads it end with an error."""
        if not self.cancelled:
            self._cancelled.set()
            self._events.put_nowait(ApiError(499, "the client closed the request", code="cancelled"))

    def emit(self, event: str | Finish | ApiError) -> None:
        """Called by the engine's thread: the next piece of text, or the end."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server ends
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def events(self) -> AsyncIterator[str | Finish]:
        """Pieces of text as they come, then a `Finish`. Raises ApiError where it fails or takes too long."""
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


class _CancelledError(Exception):
    """The generation at work is not wanted any more."""


class Engine:
    """Generates one task at a time; at most `max_queue` wait.

    Prompts are processed `prefill_step_size` tokens at a time; that, or one token, is how long a cancelled
    generation goes on.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        max_queue: int,
        timeout_s: float,
        prompt_cache_bytes: int,
        prefill_step_size: int,
    ):
        self._model = model
        self._max_queue, self._timeout_s = max_queue, timeout_s
        self._prefill_step_size = prefill_step_size
        self._seen = PromptStore(prompt_cache_bytes)
        self._waiting: deque[Generation] = deque()
        self._current: Generation | None = None
        self._wake = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)

    def start(self) -> None:
        """Begin to work on tasks."""
        self._thread.start()

    def stop(self) -> None:
        """End every generation with an error, and take no more."""
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
        """Whether tasks are worked on."""
        return self._thread.is_alive()

    def submit(self, task: Task) -> Generation:
        """Put a task into the queue, from the event loop. Raises ApiError (503) where too many wait already."""
        generation = Generation(task, self._timeout_s)
        with self._wake:
            if self._stopping:
                raise _stopping()
            self._waiting = deque(waiting for waiting in self._waiting if not waiting.cancelled)
            if len(self._waiting) >= self._max_queue + (self._current is None):
                message = f"found {len(self._waiting)} requests waiting, as many as may; try again later"
                raise ApiError(503, message, code="queue_full", headers={"Retry-After": str(RETRY_AFTER_S)})
            self._waiting.append(generation)
            self._wake.notify()
        return generation

    def _run(self) -> None:
        while (generation := self._next()) is not None:
            try:
                generation.emit(self._generate(generation))
            except _CancelledError:
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

    def _generate(self, generation: Generation) -> Finish:
        task, reply = generation.task, generation.task.reply
        tokens: list[int] = []
        reason: Literal["stop", "length"] = "length"
        cache, seen = self._seen.nearest(task.prompt)
        cache = cache or self._model.make_cache()
        with contextlib.closing(self._tokens(generation, cache, seen)) as steps:
            for token in steps:
                self._check(generation)
                tokens.append(token)
                text = "" if token in task.stop_ids else reply.add(token)
                if text:
                    generation.emit(text)
                if token in task.stop_ids or reply.stopped:
                    reason = "stop"
                    break
        if rest := reply.end():
            generation.emit(rest)
        # mlx-lm is a token ahead: the model has seen the last one too.
        self._seen.add([*task.prompt, *tokens], cache)
        return Finish(reason, len(task.prompt), len(tokens), seen)

    def _tokens(self, generation: Generation, cache: list[Any], seen: int) -> Generator[int]:
        """Tokens that continue the prompt, of which the cache has seen the first ones."""
        task, sampling = generation.task, generation.task.sampling

        def progress(processed: int, total: int) -> None:
            self._check(generation)
            if processed == total - 1 and not can_trim_prompt_cache(cache):
                # A state that cannot be cut back: kept before the answer goes into it.
                self._seen.add(task.prompt[:-1], copy.deepcopy(cache))

        mx.random.seed(sampling.seed)
        return sample_tokens(
            self._model,
            task.prompt[seen:],
            sampling,
            sampling.max_tokens,
            cache,
            prefill_step_size=self._prefill_step_size,
            prompt_progress_callback=progress,
        )

    def _check(self, generation: Generation) -> None:
        if generation.cancelled or self._stopping:
            raise _CancelledError
