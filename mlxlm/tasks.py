"""An MLX model as the tasks of an evaluation see it, as in jaxlm/tasks.py."""

import functools

from jaxlm.common.evaluation.evaluated_model import EvaluatedModel
from mlxlm.continue_texts import continue_texts
from mlxlm.model.language_model import LanguageModel
from mlxlm.score import score
from shared_tokenizer.chat.chat_format import ChatFormat
from shared_tokenizer.tokenizers.tokenizer import Tokenizer


def evaluated_model(
    name: str, model: LanguageModel, tokenizer: Tokenizer, chat_format: ChatFormat | None = None
) -> EvaluatedModel:
    """Return a model for tasks. `chat_format` writes tasks as conversations."""
    return EvaluatedModel(
        name,
        tokenizer,
        model.config.max_seq_len,
        score=functools.partial(score, model),
        continue_texts=functools.partial(continue_texts, model),
        chat_format=chat_format,
    )
