"""A GGUF file in llama.cpp, as the tasks of an evaluation see it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from jaxlm.common.evaluation.evaluated_model import EvaluatedModel
from jaxlm.common.evaluation.scoring import TokenScores, Track
from shared_tokenizer.tokenizers.tokenizer import Tokenizer


def llama_cpp_model(path: Path, tokenizer: Tokenizer, max_seq_len: int) -> EvaluatedModel:
    """Open a GGUF file. Tokens are those of our tokenizer; keys and values stay in float32."""
    float32 = llama_cpp.GGML_TYPE_F32
    options: dict[str, Any] = {"logits_all": True, "type_k": float32, "type_v": float32, "verbose": False}
    model = llama_cpp.Llama(str(path), n_ctx=max_seq_len, **options)

    def score(
        rows: Sequence[Sequence[int]], context_lengths: Sequence[int], *, track: Track = iter
    ) -> list[TokenScores]:
        return [_score(model, list(row), length) for row, length in zip(rows, context_lengths, strict=True)]

    def continue_texts(*_: Any, **__: Any) -> Any:
        raise NotImplementedError("llama.cpp is asked for log-likelihoods only")

    return EvaluatedModel("llama.cpp", tokenizer, max_seq_len, score=score, continue_texts=continue_texts)


def _score(model: llama_cpp.Llama, row: list[int], context_length: int) -> TokenScores:
    model.reset()
    model.eval(row[:-1])
    logits = np.asarray(model.scores[context_length - 1 : len(row) - 1], np.float64)
    high = logits.max(axis=-1, keepdims=True)
    logprobs = logits - high - np.log(np.exp(logits - high).sum(axis=-1, keepdims=True))
    targets = np.asarray(row[context_length:])
    taken = np.take_along_axis(logprobs, targets[:, None], axis=-1)[:, 0]
    none = np.zeros((len(targets), 0))
    return TokenScores(taken.astype(np.float32), logits.argmax(axis=-1) == targets, none.astype(np.int32), none)
