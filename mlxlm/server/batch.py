"""The texts of one model that are generated together, with mlx-lm's continuous batching."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
from mlx_lm.generate import BatchGenerator, StopSequences
from mlx_lm.models.cache import can_trim_prompt_cache, trim_prompt_cache

from jaxlm.common.openai_api.errors import ApiError, internal_error, log
from jaxlm.common.openai_api.tasks import Finish, Piece, TokenScore
from jaxlm.common.serving.engine import Engine, Generation
from mlxlm.continue_texts import MOST_PROMPTS
from mlxlm.generate import LogitsProcessor
from mlxlm.model.language_model import LanguageModel
from mlxlm.sampling import make_sampler
from mlxlm.server.logits import RawLogits, logits_processors
from mlxlm.server.prompt_store import PromptStore


@dataclass
class _Text:
    generation: Generation
    cached: int
    """Tokens of the prompt that were in the store."""
    raw: RawLogits | None
    """The logits before they were processed; None where nothing changes them."""
    processors: "_Guarded | None"
    """Functions that change the logits."""


class _Guarded:
    """The processors of one text as one. A fault is noted and not raised, so the other texts of the step go on."""

    def __init__(self, processors: Sequence[LogitsProcessor]):
        self._processors = processors
        self.has_failed = False

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        if not self.has_failed:
            try:
                for processor in self._processors:
                    logits = processor(tokens, logits)
            except Exception:
                log.exception("a change of the logits failed")
                self.has_failed = True
        return logits


class Batch:
    """The texts of one model that run; its earlier prompts lie under `name` in a store that all models share."""

    def __init__(
        self,
        model: LanguageModel,
        engine: Engine,
        max_batch: int,
        prefill_step_size: int,
        store: PromptStore,
        name: str | None = None,
    ):
        self.model = model
        self._engine, self._max_batch, self._prefill_step_size = engine, max_batch, prefill_step_size
        self._store, self._name = store, name
        self._can_trim = can_trim_prompt_cache(model.make_cache())
        self.reset()

    def reset(self) -> None:
        """Drop all texts; the store stays."""
        self._texts: dict[int, _Text] = {}
        self._generator = BatchGenerator(
            self.model,
            completion_batch_size=self._max_batch,
            prefill_batch_size=min(MOST_PROMPTS, self._max_batch),
            prefill_step_size=self._prefill_step_size,
        )

    def add(self, generation: Generation) -> None:
        """Let a text join at the next step."""
        cache, cached = self._store.nearest(generation.task.prompt, self._name)
        self._insert(generation, generation.task.prompt, cache, cached, cached)

    def take_over(
        self, generation: Generation, tokens: Sequence[int], cache: list[Any], held: int, cached: int
    ) -> None:
        """Let a text join that has begun: `tokens` are its own, and `cache` holds the first `held` of all.

        `cached` tokens of its prompt were in a store.
        """
        ids = [*generation.task.prompt, *tokens]
        if held == len(ids):  # the last one is computed again, for the logits after it
            trim_prompt_cache(cache, 1)
            held -= 1
        self._insert(generation, ids, cache, held, cached)

    def _insert(
        self, generation: Generation, ids: Sequence[int], cache: list[Any] | None, held: int, cached: int
    ) -> None:
        task = generation.task
        processors = logits_processors(task)
        raw = RawLogits() if processors and task.logprobs is not None else None
        guarded = _Guarded([raw, *processors] if raw else processors) if processors else None
        (uid,) = self._generator.insert(
            [list(ids[held:])],
            max_tokens=[task.sampling.max_tokens - generation.num_tokens],
            caches=None if cache is None else [cache],
            all_tokens=[list(ids[:held])],
            samplers=[make_sampler(task.sampling, self.model.config.vocab_size)],
            logits_processors=[[guarded] if guarded else []],
            stop_sequences=[StopSequences([[stop] for stop in sorted(task.stop_ids)] or None)],
        )
        self._texts[uid] = _Text(generation, cached, raw, guarded)

    def drop(self, generation: Generation) -> None:
        """Let a text leave without an end; it may have left before."""
        for uid, text in list(self._texts.items()):
            if text.generation is generation:
                self._generator.remove([uid])
                del self._texts[uid]

    def step(self) -> None:
        """Process a part of the new prompts, and generate one token of every other text."""
        if not self._texts:
            return
        with mx.stream(self._generator.stream):
            prompts, answers = self._generator.next()
            if not self._can_trim:
                # A recurrent state cannot go back, so it is stored before the answer changes it.
                self._store_states([response.uid for response in prompts if _is_read(response)])
            for response in answers:
                self._receive(response)

    def _store_states(self, uids: list[int]) -> None:
        for cache, tokens in self._generator.extract_cache(uids).values():
            self._keep(tokens, cache)

    def _keep(self, tokens: list[int], cache: list[Any]) -> None:
        """Store a cache for later prompts; the texts do not need it."""
        try:
            self._store.add(tokens, cache, self._name)
        except Exception:
            log.exception("a cache was not kept")

    def _receive(self, response: Any) -> None:
        """Emit what a token adds to a text, and end the text where it has ended."""
        text = self._texts[response.uid]
        generation, ended = text.generation, response.finish_reason
        try:
            if text.processors and text.processors.has_failed:
                self._fail(response.uid)
                return
            stops = emit_token(generation, response.token, self._scores(text, response), is_last=bool(ended))
        except ApiError as error:
            self._fail(response.uid, error)
            return
        except Exception:
            log.exception("a generation failed")
            self._fail(response.uid)
            return
        if not (stops or ended):
            return
        if ended:
            cache, tokens = response.prompt_cache, response.all_tokens
        else:
            cache, tokens = self._generator.remove([response.uid], return_prompt_caches=True)[response.uid]
        self._keep(tokens, cache)
        del self._texts[response.uid]
        self._engine.finish(generation, end_of(generation, stops, text.cached))

    def _fail(self, uid: int, error: ApiError | None = None) -> None:
        """Let a text leave with an error, by default a fault of the server."""
        self._generator.remove([uid])
        self._engine.finish(self._texts.pop(uid).generation, error or internal_error())

    def fail_all(self) -> None:
        """Let all texts leave with an error after a fault of the model, and begin anew."""
        for text in self._texts.values():
            self._engine.finish(text.generation, internal_error())
        self.reset()

    def _scores(self, text: _Text, response: Any) -> tuple[TokenScore, ...]:
        count = text.generation.task.logprobs
        if count is None:
            return ()
        logprobs = response.logprobs if text.raw is None else text.raw.next_logprobs()
        return (token_score(response.token, logprobs, count),)


def emit_token(
    generation: Generation, token: int, scores: tuple[TokenScore, ...] = (), *, is_last: bool = False
) -> bool:
    """Emit what a token adds to a text. Returns True if the token, or a stop sequence, ends the text.

    Raises ApiError where a grammar cannot be followed any further.
    """
    task = generation.task
    task.check_constraint()
    generation.num_tokens += 1
    is_stop = token in task.stop_ids
    piece = "" if is_stop else task.reply.add(token)
    stops = is_stop or task.reply.stopped
    if stops or is_last:
        piece += task.reply.end()
    if piece or scores:
        generation.emit(Piece(piece, scores))
    return stops


def end_of(generation: Generation, stops: bool, cached: int) -> Finish:
    """Return the end of a text, with its numbers of tokens."""
    reason = "stop" if stops else "length"
    return Finish(reason, len(generation.task.prompt), generation.num_tokens, cached)


def _is_read(response: Any) -> bool:
    """Return True if all of a prompt but its last token has been processed just now."""
    done, total = response.progress
    return done == total - 1


def token_score(token: int, logprobs: mx.array, count: int) -> TokenScore:
    """Return the score of a token from the log-probabilities `[V]`, with the `count` likeliest ones."""
    logprob = cast(float, logprobs[token].item())
    if not count:
        return TokenScore(token, logprob)
    found = mx.argpartition(-logprobs, kth=count - 1)[:count]
    ids, values = cast(list[int], found.tolist()), cast(list[float], logprobs[found].tolist())
    likeliest = sorted(zip(ids, values, strict=True), key=lambda pair: -pair[1])
    return TokenScore(token, logprob, tuple(likeliest))
