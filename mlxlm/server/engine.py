"""The engine of MLX models: continuous batching, prompts that begin alike computed once."""

from collections.abc import Mapping

import mlx.core as mx

from jaxlm.common.openai_api.tasks import Task
from jaxlm.common.serving.engine import Engine, Generation
from mlxlm.model.language_model import LanguageModel
from mlxlm.server.batch import Batch
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
    ):
        """`models` has an entry for every name of adapters, and one under None for requests without."""
        super().__init__(max_queue=max_queue, max_running=max_batch, timeout_s=timeout_s)
        each = prompt_cache_bytes // len(models)
        self._batches = {name: Batch(model, self, max_batch, each, prefill_step_size) for name, model in models.items()}

    def step(self) -> None:
        """Begin what waits, drop what was cancelled, score prompts, and generate one token of every text."""
        for generation in [generation for generation in self.running if generation.cancelled]:
            self._batch_of(generation.task).drop(generation)
            self.finish(generation, None)
        to_score = list[Generation]()
        while (generation := self.take_waiting()) is not None:
            if generation.task.scores_prompt:
                to_score.append(generation)
            else:
                self._batch_of(generation.task).add(generation)
        for adapter, batch in self._batches.items():
            prompts = [generation for generation in to_score if generation.task.adapter == adapter]
            for generation in score_prompts(batch.model, self, prompts):
                batch.add(generation)
            batch.step()

    def reset(self) -> None:
        """Drop all batches after an exception."""
        for batch in self._batches.values():
            batch.reset()
        mx.clear_cache()

    def _batch_of(self, task: Task) -> Batch:
        return self._batches[task.adapter]
