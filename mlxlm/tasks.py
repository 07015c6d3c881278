"""An MLX model as the tasks of an evaluation see it, as in jaxlm/tasks.py."""

import functools
from collections.abc import Iterator, Sequence

import numpy as np

from jaxlm.common.evaluation.evaluated_model import EvaluatedModel
from jaxlm.common.sampling import Sampling
from mlxlm.generate import generate
from mlxlm.model.language_model import LanguageModel
from mlxlm.score import score
from shared_tokenizer.chat.chat_format import ChatFormat
from shared_tokenizer.tokenizers.tokenizer import Tokenizer


def evaluated_model(
    name: str, model: LanguageModel, tokenizer: Tokenizer, chat_format: ChatFormat | None = None
) -> EvaluatedModel:
    """Return a model for tasks. `chat_format` writes tasks as conversations."""

    def continue_batch(
        prompts: Sequence[Sequence[int]], sampling: Sampling, stops: Sequence[int]
    ) -> Iterator[np.ndarray]:
        (prompt,) = prompts
        for token in generate(model, prompt, sampling, stops):
            yield np.array([token])

    return EvaluatedModel(
        name,
        tokenizer,
        model.config.max_seq_len,
        score=functools.partial(score, model),
        continue_batch=continue_batch,
        largest_batch=1,
        chat_format=chat_format,
    )
