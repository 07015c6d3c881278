"""The scores of prompts: long ones in pieces, short ones several at once."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from jaxlm.common.evaluation.scoring import ScoredPlaces
from jaxlm.common.openai_api.tasks import Finish, Piece, PromptScores, Task, TokenScore
from jaxlm.common.serving.engine import Engine, Generation
from mlxlm.model.language_model import LanguageModel
from mlxlm.score import score_hidden


class PromptScoring:
    """Prompts of one model that are scored together: one in pieces of `piece_size` tokens, or several in one piece.

    Prompts are padded behind their ends, which no earlier token sees.
    """

    def __init__(self, model: LanguageModel, generations: Sequence[Generation], piece_size: int):
        self._model, self._piece_size = model, piece_size
        self.left = list(generations)
        """Generations whose prompts have not ended."""
        self._found, self._done = list[ScoredPlaces](), 0
        is_one_piece = all(len(generation.task.prompt) <= piece_size for generation in generations)
        self._cache: list[Any] | None = None if is_one_piece else model.make_cache()
        # The likeliest token after a prompt may be all that is generated.
        top = max(1, *(generation.task.logprobs or 0 for generation in generations))
        self._top = min(top, model.config.vocab_size)

    def step(self) -> list[tuple[Generation, ScoredPlaces]]:
        """Score a piece, and return the prompts if they have ended, with the scores of all their places.

        Place i scores token i + 1 of a prompt. After the last one there is none: only the likeliest tokens count there.
        """
        prompts = [generation.task.prompt for generation in self.left]
        start = self._done
        end = min(start + self._piece_size, max(map(len, prompts)))
        inputs, places, targets = np.zeros((len(prompts), end - start), np.int32), [], []
        for row, prompt in enumerate(prompts):
            piece = prompt[start:end]
            inputs[row, : len(piece)] = piece
            places.append(row * (end - start) + np.arange(len(piece)))
            targets.append([*prompt[start + 1 : end + 1], 0][: len(piece)])
        hidden = self._model.hidden(mx.array(inputs), self._cache)
        x_SD = hidden.reshape(-1, hidden.shape[-1])[mx.array(np.concatenate(places))]
        scores = score_hidden(self._model, x_SD, np.concatenate(targets).astype(np.int32), self._top)
        if self._cache is not None:
            mx.eval([layer.state for layer in self._cache])
        self._found.append(scores)
        self._done = end
        if end < len(prompts[0]):
            return []
        whole = ScoredPlaces(*map(np.concatenate, zip(*self._found, strict=True)))
        starts = np.cumsum([0, *map(len, prompts)])
        ended = [
            (generation, ScoredPlaces(*(array[first:after] for array in whole)))
            for generation, first, after in zip(self.left, starts, starts[1:], strict=False)
        ]
        self.left = []
        return ended

    def drop(self, generation: Generation) -> None:
        """Let a prompt leave before its end."""
        self.left = [other for other in self.left if other is not generation]


def end_prompt(engine: Engine, generation: Generation, scores: ScoredPlaces) -> bool:
    """Emit the scores of a prompt. Returns True if it still has a text to generate, else the generation has ended.

    A single token that is the likeliest one is known from the scores, so the requests of lm-evaluation-harness end
    here.
    """
    task = generation.task
    count = task.logprobs or 0
    places = [
        tuple(zip(ids[:count].tolist(), logprobs[:count].tolist(), strict=True))
        for ids, logprobs in zip(scores.top_ids, scores.top_logprobs, strict=True)
    ]
    tokens = zip(task.prompt[1:], scores.logprobs[:-1].tolist(), places[:-1], strict=True)
    generation.emit(PromptScores(tuple(TokenScore(*token) for token in tokens)))
    if task.generates and not _is_known(task):
        return True
    reason, num_tokens = "length", 0
    if task.generates:
        token, num_tokens = int(scores.top_ids[-1, 0]), 1
        generation.num_tokens = 1
        stops = token in task.stop_ids
        text = "" if stops else task.reply.add(token)
        text += task.reply.end()
        reason = "stop" if stops or task.reply.stopped else "length"
        score_of_token = TokenScore(token, float(scores.top_logprobs[-1, 0]), places[-1])
        generation.emit(Piece(text, () if task.logprobs is None else (score_of_token,)))
    engine.finish(generation, Finish(reason, len(task.prompt), num_tokens, 0))
    return False


def _is_known(task: Task) -> bool:
    """Return True if the text is the likeliest token alone."""
    is_plain = task.sampling.repetition_penalty == 1 and not (task.penalties.presence or task.penalties.frequency)
    is_free = is_plain and not task.logit_bias and task.constraint is None
    return is_free and task.sampling.max_tokens == 1 and task.sampling.temperature == 0
