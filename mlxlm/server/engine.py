"""The engine of MLX models: continuous batching, prompts that begin alike computed once."""

from collections.abc import Mapping

import mlx.core as mx

from jaxlm.common.openai_api.errors import internal_error, log
from jaxlm.common.openai_api.tasks import Task
from jaxlm.common.serving.engine import Engine, Generation
from mlxlm.model.language_model import LanguageModel
from mlxlm.server.batch import Batch, emit_token, end_of
from mlxlm.server.draft import DraftedText, Drafter
from mlxlm.server.prompt_scores import score_prompts
from mlxlm.server.prompt_store import PromptStore

# Tokens of prompts that are scored between two tokens of what runs, unless one prompt alone has more.
SCORED_TOKENS = 4096


class MlxEngine(Engine):
    """A thread that generates up to `max_batch` texts together; requests join and leave between two tokens.

    Each set of adapters is a model of its own, which shares the arrays of the others, and has a batch of its own; the
    batches take turns. Prompts are processed `prefill_step_size` tokens at a time, between the tokens of what runs.
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
    ):
        """`models` has an entry for every name of adapters, and one under None for requests without.

        With a `draft` model, a text that is alone is generated with it. Raises ValueError as `Drafter` does.
        """
        super().__init__(max_queue=max_queue, max_running=max_batch, timeout_s=timeout_s)
        self._store = store = PromptStore(prompt_cache_bytes)
        self._batches = {
            name: Batch(model, self, max_batch, prefill_step_size, store, name) for name, model in models.items()
        }
        self._to_score: list[Generation] = []
        self._drafter = None if draft is None else Drafter(models[None], draft, prefill_step_size, store)
        self._drafted: DraftedText | None = None

    def step(self) -> None:
        """Begin what waits, drop what was cancelled, score prompts, and generate one token of every text."""
        for generation in [generation for generation in self.running if generation.cancelled]:
            self._drop(generation)
        while (generation := self.take_waiting()) is not None:
            self._begin(generation)
        self._step_drafted()
        self._score_some()
        for batch in self._batches.values():
            batch.step()

    def _begin(self, generation: Generation) -> None:
        """Let a generation join; one that cannot fails alone."""
        task = generation.task
        try:
            if task.scores_prompt:
                self._to_score.append(generation)
            elif self._drafter and len(self.running) == 1 and self._drafter.suits(task):
                self._drafted = self._drafter.begin(generation)
            else:
                self._batch_of(task).add(generation)
        except Exception:
            log.exception("a generation failed")
            self.finish(generation, internal_error())

    def _score_some(self) -> None:
        """Score waiting prompts of one model, as many as take little time: what runs goes on between them."""
        if not self._to_score:
            return
        adapter, prompts, tokens = self._to_score[0].task.adapter, list[Generation](), 0
        for generation in self._to_score:
            tokens += len(generation.task.prompt)
            if generation.task.adapter == adapter and (not prompts or tokens <= SCORED_TOKENS):
                prompts.append(generation)
        self._to_score = [generation for generation in self._to_score if generation not in prompts]
        batch = self._batches[adapter]
        try:
            left = score_prompts(batch.model, self, prompts)
        except Exception:
            log.exception("the scores of prompts failed")
            for generation in prompts:
                if generation in self.running:
                    self.finish(generation, internal_error())
            return
        for generation in left:
            batch.add(generation)

    def _drop(self, generation: Generation) -> None:
        """Let a generation leave that no client waits for any more."""
        if self._drafted and self._drafted.generation is generation:
            self._drafted.close()
            self._drafted = None
        elif generation in self._to_score:
            self._to_score.remove(generation)
        else:
            self._batch_of(generation.task).drop(generation)
        self.finish(generation, None)

    def _step_drafted(self) -> None:
        """Generate a token of the text that has a draft model; where it is not alone any more, it joins the batch."""
        text, drafter = self._drafted, self._drafter
        if text is None or drafter is None:
            return
        generation = text.generation
        if len(self.running) > 1:
            held = len(text.close())
            self._drafted = None
            self._batches[None].take_over(generation, text.tokens, text.model_cache(), held, text.cached)
            return
        token = text.next_token()
        is_last = len(text.tokens) == generation.task.sampling.max_tokens
        stops = emit_token(generation, token, is_last=is_last)
        if stops or is_last:
            self._drafted = None
            drafter.keep(text)
            self.finish(generation, end_of(generation, stops, text.cached))

    def reset(self) -> None:
        """Drop all batches after an exception."""
        self._drafted, self._to_score = None, []
        for batch in self._batches.values():
            batch.reset()
        mx.clear_cache()

    def _batch_of(self, task: Task) -> Batch:
        return self._batches[task.adapter]
