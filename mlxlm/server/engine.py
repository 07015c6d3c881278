"""The engine of an MLX model: prompts that begin alike are computed once, texts one after another."""

import contextlib
import copy
import functools
from collections.abc import Generator
from typing import Any, Literal

import mlx.core as mx
from mlx_lm.models.cache import can_trim_prompt_cache
from mlx_lm.sample_utils import make_frequency_penalty, make_presence_penalty

from jaxlm.common.openai_api.tasks import Finish, Piece, TokenPenalties
from jaxlm.common.serving.engine import Engine, Generation
from mlxlm.generate import LogitsProcessor, sample_tokens
from mlxlm.model.language_model import LanguageModel
from mlxlm.server.prompt_store import PromptStore

# Tokens. The penalties of mlx-lm look back as far as they are told.
LONGEST_ANSWER = 1 << 30


def penalty_processors(penalties: TokenPenalties, num_given: int) -> list[LogitsProcessor]:
    """Return the functions that take penalties off; the first `num_given` tokens they see are the prompt's."""
    found = [
        make(amount, LONGEST_ANSWER)
        for make, amount in ((make_presence_penalty, penalties.presence), (make_frequency_penalty, penalties.frequency))
        if amount
    ]
    return [functools.partial(_penalize_answer, penalty, num_given) for penalty in found]


def _penalize_answer(penalty: LogitsProcessor, num_given: int, tokens: mx.array, logits: mx.array) -> mx.array:
    return penalty(tokens[num_given:], logits)


class MlxEngine(Engine):
    """A thread that generates one task at a time.

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
        super().__init__(max_queue=max_queue, timeout_s=timeout_s)
        self._model = model
        self._prefill_step_size = prefill_step_size
        self._store = PromptStore(prompt_cache_bytes)

    def generate(self, generation: Generation) -> Finish:
        """Generate a text and emit its pieces."""
        task, reply = generation.task, generation.task.reply
        tokens: list[int] = []
        reason: Literal["stop", "length"] = "length"
        cache, cached = self._store.nearest(task.prompt)
        cache = cache or self._model.make_cache()
        with contextlib.closing(self._tokens(generation, cache, cached)) as steps:
            for token in steps:
                self.check(generation)
                tokens.append(token)
                generation.num_tokens = len(tokens)
                text = "" if token in task.stop_ids else reply.add(token)
                if text:
                    generation.emit(Piece(text))
                if token in task.stop_ids or reply.stopped:
                    reason = "stop"
                    break
        if rest := reply.end():
            generation.emit(Piece(rest))
        # mlx-lm runs one token ahead, so the cache holds the last token too.
        self._store.add([*task.prompt, *tokens], cache)
        return Finish(reason, len(task.prompt), len(tokens), cached)

    def _tokens(self, generation: Generation, cache: list[Any], cached: int) -> Generator[int]:
        """Return the tokens that continue the prompt, whose first `cached` tokens the cache holds."""
        task, sampling = generation.task, generation.task.sampling

        def progress(processed: int, total: int) -> None:
            self.check(generation)
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
            logits_processors=penalty_processors(task.penalties, len(task.prompt) - cached),
            prefill_step_size=self._prefill_step_size,
            prompt_progress_callback=progress,
        )
