"""Log-probabilities of tokens under a model, as in jaxlm/score.py: one prefill without a cache."""

from collections.abc import Mapping, Sequence

import mlx.core as mx
import numpy as np

from jaxlm.common.evaluation.scoring import ScoredPlaces, TokenScores, Track, score_rows
from mlxlm.model.language_model import LanguageModel

# Bytes of the float32 logits of a chunk of places, and the fewest places of one.
LARGEST_CHUNK_BYTES, SMALLEST_CHUNK = 64 * 2**20, 32


def score(
    model: LanguageModel,
    rows: Sequence[Sequence[int]],
    context_lengths: Sequence[int],
    *,
    top: int = 0,
    track: Track = iter,
) -> list[TokenScores]:
    """Return the scores of each row's tokens but the first `context_length` ones, see `score_rows`.

    `top` is the number of likeliest tokens to report. Raises ValueError as `score_rows` does.
    """
    config = model.config

    def places(inputs: np.ndarray, places: np.ndarray, targets: np.ndarray) -> ScoredPlaces:
        return score_places(model, {"inputs": inputs}, places, targets, top)

    return score_rows(
        rows,
        context_lengths,
        places,
        vocab_size=config.vocab_size,
        max_seq_len=config.max_seq_len,
        top=top,
        track=track,
    )


def score_places(
    model: LanguageModel, batch: Mapping[str, np.ndarray], places: np.ndarray, targets: np.ndarray, top: int = 0
) -> ScoredPlaces:
    """Return the scores of targets `[S]` at places `[S]` of a batch, indices into all positions of its inputs `[B, L]`.

    The batch may hold `segment_ids` as well.
    """
    segment_ids = mx.array(batch["segment_ids"]) if "segment_ids" in batch else None
    hidden = model.hidden(mx.array(batch["inputs"]), segment_ids=segment_ids)
    return score_hidden(model, hidden.reshape(-1, hidden.shape[-1])[mx.array(places)], targets, top)


def score_hidden(model: LanguageModel, x_SD: mx.array, targets: np.ndarray, top: int = 0) -> ScoredPlaces:
    """Return the scores of targets `[S]` at places whose outputs of the last block are `x_SD`."""
    size = max(SMALLEST_CHUNK, LARGEST_CHUNK_BYTES // (4 * model.config.vocab_size))
    parts = list[tuple[mx.array, ...]]()
    for start in range(0, len(targets), size):
        part = _score_chunk(model, x_SD[start : start + size], mx.array(targets[start : start + size]), top)
        mx.eval(part)  # one chunk's logits in memory at a time
        parts.append(part)
    return ScoredPlaces(*(np.concatenate([np.array(array) for array in arrays]) for arrays in zip(*parts, strict=True)))


def _score_chunk(model: LanguageModel, x_CD: mx.array, targets_C: mx.array, top: int) -> tuple[mx.array, ...]:
    logits_CV = model.head(x_CD)
    logprobs_CV = logits_CV - mx.logsumexp(logits_CV, axis=-1, keepdims=True)
    of_targets = mx.take_along_axis(logprobs_CV, targets_C[:, None], axis=-1)[:, 0]
    is_greedy = mx.argmax(logits_CV, axis=-1) == targets_C
    if not top:
        none = mx.zeros((len(targets_C), 0))
        return of_targets, is_greedy, none.astype(mx.int32), none
    ids = mx.argpartition(-logprobs_CV, kth=top - 1, axis=-1)[:, :top]
    likeliest = mx.take_along_axis(logprobs_CV, ids, axis=-1)
    order = mx.argsort(-likeliest, axis=-1)
    return (
        of_targets,
        is_greedy,
        mx.take_along_axis(ids, order, -1).astype(mx.int32),
        mx.take_along_axis(likeliest, order, -1),
    )
