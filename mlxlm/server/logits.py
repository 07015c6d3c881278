"""Changes to the logits of one text before its next token is chosen."""

import functools
from typing import cast

import mlx.core as mx
from mlx_lm.sample_utils import (
    make_frequency_penalty,
    make_logits_processors,
    make_presence_penalty,
    make_repetition_penalty,
)

from jaxlm.common.openai_api.tasks import Constraint, Task
from jaxlm.common.sampling import PENALTY_WINDOW
from mlxlm.generate import LogitsProcessor

# Tokens. The penalties of mlx-lm look back as far as they are told.
LONGEST_ANSWER = 1 << 30


def logits_processors(task: Task) -> list[LogitsProcessor]:
    """Return the functions (tokens so far `[n]`, logits `[1, V]`) -> logits of a task, in their order.

    The tokens are those of the prompt and the answer.
    """
    found: list[LogitsProcessor] = []
    if task.sampling.repetition_penalty != 1:
        found.append(make_repetition_penalty(task.sampling.repetition_penalty, PENALTY_WINDOW))
    for make, amount in (
        (make_presence_penalty, task.penalties.presence),
        (make_frequency_penalty, task.penalties.frequency),
    ):
        if amount:
            found.append(functools.partial(_penalize_answer, make(amount, LONGEST_ANSWER), len(task.prompt)))
    if task.logit_bias:
        found += make_logits_processors(dict(task.logit_bias))
    if task.constraint is not None:
        found.append(_Constrained(task.constraint, len(task.prompt)))
    return found


def _penalize_answer(penalty: LogitsProcessor, num_given: int, tokens: mx.array, logits: mx.array) -> mx.array:
    return penalty(tokens[num_given:], logits)


class _Constrained:
    """Hides the tokens that a constraint does not allow; it has to see the last token first."""

    def __init__(self, constraint: Constraint, num_given: int):
        self._constraint, self._seen = constraint, num_given

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        for token in cast(list[int], tokens[self._seen :].tolist()):
            self._constraint.accept(token)
        self._seen = max(self._seen, len(tokens))
        return mx.where(mx.array(self._constraint.allowed())[None], logits, -mx.inf)


class RawLogits:
    """A processor that changes nothing, and keeps the logits of the model for those who ask for its distribution."""

    def __init__(self) -> None:
        self._kept: list[mx.array] = []

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        self._kept.append(logits)
        # The penalties of mlx-lm write into their argument.
        return mx.array(logits)

    def next_logprobs(self) -> mx.array:
        """Return the log-probabilities `[V]` of the earliest token that was not asked for yet."""
        logits = self._kept.pop(0)[0]
        return logits - mx.logsumexp(logits)
