"""A JAX model as the tasks of an evaluation see it."""

import functools

from jaxlm.common.evaluation.evaluated_model import EvaluatedModel
from jaxlm.continue_texts import continue_texts
from jaxlm.model.language_model import LanguageModel
from jaxlm.ops.ternary_linear import Params, ternarize
from jaxlm.score import score
from shared_tokenizer.chat.chat_format import ChatFormat
from shared_tokenizer.tokenizers.tokenizer import Tokenizer


def evaluated_model(
    name: str, model: LanguageModel, params: Params, tokenizer: Tokenizer, chat_format: ChatFormat | None = None
) -> EvaluatedModel:
    """Return a model for tasks. Parameters may be latent or ternary; `chat_format` writes tasks as conversations."""
    ternary = ternarize(params, model.config)
    return EvaluatedModel(
        name,
        tokenizer,
        model.config.max_seq_len,
        score=functools.partial(score, model, ternary),
        continue_texts=functools.partial(continue_texts, model, ternary),
        chat_format=chat_format,
    )
