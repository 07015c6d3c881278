"""Models that need no framework: a tokenizer of characters' bytes, and log-probabilities by a rule."""

from collections.abc import Callable, Sequence

import numpy as np

from jaxlm.common.evaluation.evaluated_model import EvaluatedModel
from jaxlm.common.evaluation.scoring import TokenScores

# The ids before a token, and the token -> its log-probability.
Rule = Callable[[Sequence[int], int], float]


def fake_model(tokenizer, rule: Rule, *, max_seq_len: int = 1000, answer: Sequence[int] = (), chat_format=None):
    """A model with log-probabilities by a rule, which continues every prompt by the ids of `answer`, then the end."""
    seen = []

    def score(rows, context_lengths, *, track=iter):
        list(track([list(range(len(rows)))]))
        seen.extend(map(list, rows))
        assert all(len(row) <= max_seq_len + 1 for row in rows)
        return [
            TokenScores(
                np.array([rule(row[:place], row[place]) for place in range(length, len(row))], np.float32),
                np.ones(len(row) - length, bool),
                np.zeros((len(row) - length + 1, 0), np.int32),
                np.zeros((len(row) - length + 1, 0), np.float32),
            )
            for row, length in zip(rows, context_lengths, strict=True)
        ]

    def continue_texts(texts, sampling, add):
        seen.extend(list(text.prompt) for text in texts)
        for number, text in enumerate(texts):
            for token in [*answer, tokenizer.eos_id][: text.max_tokens]:
                if add(number, token):
                    break
            yield number

    model = EvaluatedModel("fake", tokenizer, max_seq_len, score, continue_texts, chat_format)
    return model, seen
