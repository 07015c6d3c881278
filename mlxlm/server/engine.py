"""The thread that generates, one request after another, and its queue."""

import asyncio
import contextlib
import copy
import functools
import threading
from collections import deque
from collections.abc import AsyncIterator, Generator
from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx
from mlx_lm.models.cache import can_trim_prompt_cache
from mlx_lm.sample_utils import make_frequency_penalty, make_presence_penalty

from jaxlm.common.sampling import Sampling
from mlxlm.generate import LogitsProcessor, sample_tokens
from mlxlm.model.language_model import LanguageModel
from mlxlm.server.errors import ApiError, internal_error, log
from mlxlm.server.prompt_store import PromptStore
from mlxlm.server.reply_text import ReplyText

RETRY_AFTER_S = 2
# Longer than one prefill step takes. After this time the process ends without waiting for the thread.
LONGEST_STOP_S = 5.0
# Tokens. The penalties of mlx-lm look back as far as they are told.
LONGEST_ANSWER = 1 << 30


@dataclass(frozen=True, kw_only=True)
class TokenPenalties:
    """Amounts that are taken off the logits of tokens which the answer holds already; 0 changes nothing."""

    presence: float = 0.0
    """Taken off once."""
    frequency: float = 0.0
    """Taken off for every time that the token was generated."""

    def processors(self, num_given: int) -> list[LogitsProcessor]:
        """Return the functions that take them off; the first `num_given` tokens they see are the prompt's."""
        penalties = [
            make(amount, LONGEST_ANSWER)
            for make, amount in ((make_presence_penalty, self.presence), (make_frequency_penalty, self.frequency))
            if amount
        ]
        return [functools.partial(_penalize_answer, penalty, num_given) for penalty in penalties]


def _penalize_answer(penalty: LogitsProcessor, num_given: int, tokens: mx.array, logits: mx.array) -> mx.array:
    return penalty(tokens[num_given:], logits)


@dataclass(frozen=True, kw_only=True)
class Task:
    """One text to generate."""

    prompt: list[int]
    """Token ids, which fit the model's context."""
    sampling: Sampling
    penalties: TokenPenalties = TokenPenalties()
    stop_ids: frozenset[int]
    """Tokens that end the text."""
    reply: ReplyText
    """Decoder of the tokens; only the engine's thread uses it."""


@dataclass(frozen=True)
class Finish:
    """The end of a generation, with its token counts."""

    reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int
    """Generated tokens, including the one that ended the text."""
    cached_tokens: int
    """Tokens of the prompt that were in the prompt store."""


class Generation:
    """A submitted task: the event loop reads its events, the engine's thread writes them."""

    def __init__(self, task: Task, timeout_s: float):
        self.task = task
        self.num_tokens = 0
        """Tokens generated so far; the engine's thread counts them."""
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time() + timeout_s
        self._timeout_s = timeout_s
        self._events: asyncio.Queue[str | Finish | ApiError] = asyncio.Queue()
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

    def emit(self, event: str | Finish | ApiError) -> None:
        """Send the next piece of text, or the end, from the engine's thread to the event loop."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server ends
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def events(self) -> AsyncIterator[str | Finish]:
        """Yield pieces of text as they come, then a `Finish`. Raises ApiError if it fails or takes too long."""
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
    """The current generation was cancelled, or the server stops."""


class Engine:
    """A thread that generates one task at a time; at most `max_queue` tasks wait.

    Prompts are processed `prefill_step_size` tokens at a time. A cancelled generation ends after the current step of
    the prompt, or after the current token.
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
        self._store = PromptStore(prompt_cache_bytes)
        self._waiting: deque[Generation] = deque()
        self._current: Generation | None = None
        self._wake = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)

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
        cache, cached = self._store.nearest(task.prompt)
        cache = cache or self._model.make_cache()
        with contextlib.closing(self._tokens(generation, cache, cached)) as steps:
            for token in steps:
                self._check(generation)
                tokens.append(token)
                generation.num_tokens = len(tokens)
                text = "" if token in task.stop_ids else reply.add(token)
                if text:
                    generation.emit(text)
                if token in task.stop_ids or reply.stopped:
                    reason = "stop"
                    break
        if rest := reply.end():
            generation.emit(rest)
        # mlx-lm runs one token ahead, so the cache holds the last token too.
        self._store.add([*task.prompt, *tokens], cache)
        return Finish(reason, len(task.prompt), len(tokens), cached)

    def _tokens(self, generation: Generation, cache: list[Any], cached: int) -> Generator[int]:
        """Return the tokens that continue the prompt, whose first `cached` tokens the cache holds."""
        task, sampling = generation.task, generation.task.sampling

        def progress(processed: int, total: int) -> None:
            self._check(generation)
            if processed == total - 1 and not can_trim_prompt_cache(cache):
                # A recurrent state cannot go back, so it is stored before the answer changes it.
                self._store.add(task.prompt[:-1], copy.deepcopy(cache))

        mx.random.seed(sampling.seed)
        return sample_tokens(
            self._model,
            task.prompt[cached:],
            sampling,
            sampling.max_tokens,
            cache,
            earlier=task.prompt[:cached],
            logits_processors=task.penalties.processors(len(task.prompt) - cached),
            prefill_step_size=self._prefill_step_size,
            prompt_progress_callback=progress,
        )

    def _check(self, generation: Generation) -> None:
        if generation.cancelled or self._stopping:
            raise _CancelledError
