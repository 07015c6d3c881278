"""The engine of MLX models: continuous batching, prompts that begin alike computed once."""

import contextlib
from collections.abc import Iterator, Mapping

import mlx.core as mx

from jaxlm.common.openai_api.errors import internal_error, log
from jaxlm.common.openai_api.tasks import Task
from jaxlm.common.serving.engine import Engine, Generation
from mlxlm.model.language_model import LanguageModel
from mlxlm.server.batch import Batch, emit_token, end_of
from mlxlm.server.cache_room import CacheRoom
from mlxlm.server.draft import DraftedText, Drafter
from mlxlm.server.prompt_scores import PromptScoring, end_prompt
from mlxlm.server.prompt_store import PromptStore


class MlxEngine(Engine):
    """A thread that generates up to `max_batch` texts together; requests join and leave between two tokens.

    Each set of adapters is a model of its own, which shares the arrays of the others, and has a batch of its own; the
    batches take turns. Prompts are processed, and scored, `prefill_step_size` tokens at a time, between the tokens of
    what runs.
    """

    def __init__(
        self,
        models: Mapping[str | None, LanguageModel],
        *,
        max_queue: int,
        max_batch: int,
        timeout_s: float,
        prompt_cache_bytes: int,
        prefill_step_size: int,
        draft: LanguageModel | None = None,
        room: CacheRoom | None = None,
    ):
        """`models` has an entry for every name of adapters, and one under None for requests without.

        Texts wait while there is no `room` for their caches. With a `draft` model, a text that is alone is generated
        with it. Raises ValueError as `Drafter` does.
        """
        super().__init__(max_queue=max_queue, max_running=max_batch, timeout_s=timeout_s)
        self._store = store = PromptStore(prompt_cache_bytes)
        self._batches = {
            name: Batch(model, self, max_batch, prefill_step_size, store, name) for name, model in models.items()
        }
        self._room, self._piece_size = room, prefill_step_size
        self._to_score: list[Generation] = []
        self._to_score_alone: list[Generation] = []
        self._scoring: PromptScoring | None = None
        self._drafter = None if draft is None else Drafter(models[None], draft, prefill_step_size, store)
        self._drafted: DraftedText | None = None

    def has_room(self, task: Task) -> bool:
        """Return True if there is room for the cache of a text beside those that run."""
        tasks = [task, *(generation.task for generation in self.running)]
        return self._room is None or self._room.holds([_longest(each) for each in tasks])

    @property
    def prompt_store_bytes(self) -> int:
        """Bytes of the caches of earlier prompts, of all models."""
        return self._store.num_bytes

    def step(self) -> None:
        """Begin what waits, drop what was cancelled, score a piece of prompts, and generate one token of every text."""
        for generation in [generation for generation in self.running if generation.cancelled]:
            self._drop(generation)
        while (generation := self.take_waiting()) is not None:
            self._begin(generation)
        self._step_drafted()
        self._score_some()
        for batch in self._batches.values():
            try:
                batch.step()
            except Exception:
                log.exception("a step of a batch failed")
                batch.fail_all()

    def _begin(self, generation: Generation) -> None:
        """Let a generation join."""
        task = generation.task
        if task.scores_prompt:
            self._to_score.append(generation)
        elif self._drafter and len(self.running) == 1 and self._drafter.suits(task):
            with self._failing_alone(generation):
                self._drafted = self._drafter.begin(generation)
        else:
            self._join(generation)

    def _join(self, generation: Generation) -> None:
        with self._failing_alone(generation):
            self._batch_of(generation.task).add(generation)

    @contextlib.contextmanager
    def _failing_alone(self, generation: Generation) -> Iterator[None]:
        """End a generation with an error on a fault; the others go on."""
        try:
            yield
        except Exception:
            log.exception("a generation failed")
            if generation in self.running:
                self.finish(generation, internal_error())

    def _score_some(self) -> None:
        """Score a piece of waiting prompts of one model, which takes little time: what runs goes on between pieces."""
        if self._scoring is None and (self._to_score or self._to_score_alone):
            self._scoring = self._next_scoring()
        scoring = self._scoring
        if scoring is None:
            return
        try:
            ended = scoring.step()
        except Exception:
            log.exception("the scores of prompts failed")
            self._scoring = None
            if len(scoring.left) > 1:  # the fault may be that of one prompt: each tries alone
                self._to_score_alone.extend(scoring.left)
            else:
                for generation in scoring.left:
                    self.finish(generation, internal_error())
            return
        if not scoring.left:
            self._scoring = None
        for generation, scores in ended:
            with self._failing_alone(generation):
                if end_prompt(self, generation, scores):
                    self._join(generation)

    def _next_scoring(self) -> PromptScoring:
        """Return the prompts that are scored next: those of one model, as many as are one piece when padded."""
        prompts = [self._to_score_alone.pop(0)] if self._to_score_alone else list[Generation]()
        adapter = (prompts or self._to_score)[0].task.adapter
        for generation in [] if prompts else self._to_score:
            longest = max(len(each.task.prompt) for each in (*prompts, generation))
            fits = (len(prompts) + 1) * longest <= self._piece_size
            if generation.task.adapter == adapter and (fits or not prompts):
                prompts.append(generation)
        self._to_score = [generation for generation in self._to_score if generation not in prompts]
        return PromptScoring(self._batches[adapter].model, prompts, self._piece_size)

    def _drop(self, generation: Generation) -> None:
        """Let a generation leave that no client waits for any more."""
        if self._drafted and self._drafted.generation is generation:
            self._drafted.close()
            self._drafted = None
        elif generation in self._to_score:
            self._to_score.remove(generation)
        elif generation in self._to_score_alone:
            self._to_score_alone.remove(generation)
        elif self._scoring and generation in self._scoring.left:
            self._scoring.drop(generation)
            if not self._scoring.left:
                self._scoring = None
        else:
            self._batch_of(generation.task).drop(generation)
        self.finish(generation, None)

    def _step_drafted(self) -> None:
        """Generate a token of the text that has a draft model; where it is not alone any more, it joins the batch."""
        text, drafter = self._drafted, self._drafter
        if text is None or drafter is None:
            return
        generation = text.generation
        try:
            if len(self.running) > 1:
                self._drafted = None
                held = len(text.close())
                self._batches[None].take_over(generation, text.tokens, text.model_cache(), held, text.cached)
                return
            token = text.next_token()
            is_last = len(text.tokens) == generation.task.sampling.max_tokens
            stops = emit_token(generation, token, is_last=is_last)
            if stops or is_last:
                self._drafted = None
                drafter.keep(text)
                self.finish(generation, end_of(generation, stops, text.cached))
        except Exception:
            log.exception("a generation with a draft model failed")
            self._drafted = None
            self.finish(generation, internal_error())

    def reset(self) -> None:
        """Drop all batches after an exception."""
        self._drafted = self._scoring = None
        self._to_score, self._to_score_alone = [], []
        for batch in self._batches.values():
            batch.reset()
        mx.clear_cache()

    def _batch_of(self, task: Task) -> Batch:
        return self._batches[task.adapter]


def _longest(task: Task) -> int:
    """Return the tokens that a text has at most."""
    return len(task.prompt) + (task.sampling.max_tokens if task.generates else 0)
