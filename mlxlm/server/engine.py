"""The engine of MLX models: continuous batching, prompts that begin alike computed once."""

from collections.abc import Mapping

import mlx.core as mx

from jaxlm.common.openai_api.tasks import Task
from jaxlm.common.serving.engine import Engine, Generation
from mlxlm.model.language_model import LanguageModel
from mlxlm.server.batch import Batch, emit_token, end_of
from mlxlm.server.draft import DraftedText, Drafter
from mlxlm.server.prompt_scores import score_prompts


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
        each = prompt_cache_bytes // len(models)
        self._batches = {name: Batch(model, self, max_batch, each, prefill_step_size) for name, model in models.items()}

        self._drafter = None if draft is None else Drafter(models[None], draft, each, prefill_step_size)
        self._drafted: DraftedText | None = None

    def step(self) -> None:
        """Begin what waits, drop what was cancelled, score prompts, and generate one token of every text."""
        for generation in [generation for generation in self.running if generation.cancelled]:
            self._drop(generation)
        to_score = list[Generation]()
        while (generation := self.take_waiting()) is not None:
            if generation.task.scores_prompt:
                to_score.append(generation)
            elif self._drafter and len(self.running) == 1 and self._drafter.suits(generation.task):
                self._drafted = self._drafter.begin(generation)
            else:
                self._batch_of(generation.task).add(generation)
        self._step_drafted()
        for adapter, batch in self._batches.items():
            prompts = [generation for generation in to_score if generation.task.adapter == adapter]
            for generation in score_prompts(batch.model, self, prompts):
                batch.add(generation)
            batch.step()

    def _drop(self, generation: Generation) -> None:
        """Let a generation leave that no client waits for any more."""
        if self._drafted and self._drafted.generation is generation:
            self._drafted.close()
            self._drafted = None
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
        self._drafted = None
        for batch in self._batches.values():
            batch.reset()
        mx.clear_cache()

    def _batch_of(self, task: Task) -> Batch:
        return self._batches[task.adapter]
