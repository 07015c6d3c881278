"""One text with a draft model: a small model guesses the next tokens, and the large one checks them in one step.

mlx-lm's `speculative_generate_step` (arXiv 2211.17192) accepts the guesses that are the large model's own choice.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
from mlx_lm.generate import speculative_generate_step
from mlx_lm.models.cache import can_trim_prompt_cache, trim_prompt_cache

from jaxlm.common.openai_api.tasks import Task
from jaxlm.common.serving.engine import Generation
from mlxlm.model.language_model import LanguageModel
from mlxlm.server.prompt_store import PromptStore

# Tokens that are guessed at a time, as mlx-lm's server does.
GUESSES = 3


class Drafter:
    """A draft model for one model; the caches of both for earlier prompts lie in a store that all models share."""

    def __init__(self, model: LanguageModel, draft: LanguageModel, prefill_step_size: int, store: PromptStore):
        """Raises ValueError where a model has a recurrent state, which cannot go back to what was accepted."""
        for name, each in (("model", model), ("draft_model", draft)):
            if not can_trim_prompt_cache(each.make_cache()):
                raise ValueError(
                    f"draft_model: found a {name} with a recurrent state, which cannot go back to the last accepted "
                    "token; expected attention in all layers; leave draft_model out"
                )
        self._model, self._draft, self._prefill_step_size = model, draft, prefill_step_size
        self._store = store

    def suits(self, task: Task) -> bool:
        """Return True if the text is the likeliest one of the model as it is, and nothing is reported of its tokens."""
        sampling, penalties = task.sampling, task.penalties
        is_plain = sampling.temperature == 0 and sampling.repetition_penalty == 1
        is_free = not (penalties.presence or penalties.frequency or task.logit_bias) and task.constraint is None
        return is_plain and is_free and task.logprobs is None and task.adapter is None

    def begin(self, generation: Generation) -> "DraftedText":
        """Begin a text that `suits`."""
        cache, cached = self._store.nearest(generation.task.prompt, self)
        cache = cache or [*self._model.make_cache(), *self._draft.make_cache()]
        return DraftedText(
            generation, self._steps(generation.task, cache, cached), cache, cached, len(self._model.layers)
        )

    def _steps(self, task: Task, cache: list[Any], cached: int) -> Iterator[int]:
        steps = speculative_generate_step(
            mx.array(task.prompt[cached:]),
            self._model,
            self._draft,
            num_draft_tokens=GUESSES,
            max_tokens=task.sampling.max_tokens,
            prompt_cache=cache,
            prefill_step_size=self._prefill_step_size,
        )
        with contextlib.closing(steps):
            for token, _, _ in steps:
                yield int(token)

    def keep(self, text: "DraftedText") -> None:
        """Store the caches of a text that has ended, for prompts that begin like it."""
        ids = text.close()
        self._store.add(ids, text.cache, self)


class DraftedText:
    """A text that is generated alone, with a draft model."""

    def __init__(self, generation: Generation, steps: Iterator[int], cache: list[Any], cached: int, num_layers: int):
        self.generation, self.cache, self.cached = generation, cache, cached
        self._steps, self._num_layers = steps, num_layers
        self.tokens: list[int] = []

    def next_token(self) -> int:
        """Return the next token; the text has not ended."""
        self.tokens.append(next(self._steps))
        return self.tokens[-1]

    def close(self) -> list[int]:
        """End the steps, and return the ids that the caches of both models hold."""
        self._steps.close()  # pyright: ignore[reportAttributeAccessIssue]  (a generator)
        model, draft = self.cache[: self._num_layers], self.cache[self._num_layers :]
        held = min(model[0].offset, draft[0].offset)
        for caches in (model, draft):
            trim_prompt_cache(caches, caches[0].offset - held)
        return [*self.generation.task.prompt, *self.tokens][:held]

    def model_cache(self) -> list[Any]:
        """Return the model's own cache after `close`."""
        return self.cache[: self._num_layers]
