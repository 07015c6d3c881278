"""Log-probabilities of tokens under a model: one prefill without a cache."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.common.evaluation.scoring import ScoredPlaces, TokenScores, Track, score_rows
from jaxlm.model.language_model import LanguageModel
from jaxlm.ops.logits import head_logits
from jaxlm.ops.ternary_linear import Params, ternarize

# Bytes of the float32 logits of a chunk of places, and the fewest places of one.
LARGEST_CHUNK_BYTES, SMALLEST_CHUNK = 64 * 2**20, 32


def score(
    model: LanguageModel,
    params: Params,
    rows: Sequence[Sequence[int]],
    context_lengths: Sequence[int],
    *,
    top: int = 0,
    track: Track = iter,
) -> list[TokenScores]:
    """Return the scores of each row's tokens but the first `context_length` ones, see `score_rows`.

    `top` is the number of likeliest tokens to report. Parameters may be latent or ternary. Raises ValueError as
    `score_rows` does.
    """
    config = model.config
    ternary = ternarize(params, config)

    def places(inputs: np.ndarray, places: np.ndarray, targets: np.ndarray) -> ScoredPlaces:
        return score_places(model, ternary, {"inputs": inputs}, places, targets, top)

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
    model: LanguageModel, params: Params, batch: Any, places: np.ndarray, targets: np.ndarray, top: int = 0
) -> ScoredPlaces:
    """Return the scores of targets `[S]` at places `[S]` of a batch, indices into all positions of its inputs `[B, L]`.

    The batch may hold `positions` and `segment_ids` as well.
    """
    return ScoredPlaces(*map(np.asarray, _score_places(model, params, dict(batch), places, targets, top)))


@functools.partial(jax.jit, static_argnames=("model", "top"))
def _score_places(
    model: LanguageModel, params: Params, batch: Any, places: jax.Array, targets: jax.Array, top: int
) -> tuple[jax.Array, ...]:
    operands: Any = model.apply(
        {"params": params},
        batch["inputs"],
        batch.get("positions"),
        batch.get("segment_ids"),
        method="head_operands",
    )
    x, weight = operands
    x_SD = x.reshape(-1, x.shape[-1])[places]

    def chunk(rows: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
        x_CD, targets_C = rows
        logits_CV = head_logits(x_CD[None], weight, soft_cap=model.config.logit_softcap)[0]
        logprobs_CV = logits_CV - jax.nn.logsumexp(logits_CV, axis=-1, keepdims=True)
        of_targets = jnp.take_along_axis(logprobs_CV, targets_C[:, None], axis=-1)[:, 0]
        likeliest, ids = jax.lax.top_k(logprobs_CV, top)
        return of_targets, jnp.argmax(logits_CV, axis=-1) == targets_C, ids, likeliest

    S, size = len(places), max(SMALLEST_CHUNK, LARGEST_CHUNK_BYTES // (4 * model.config.vocab_size))
    chunks = next(n for n in range(1, S + 1) if S % n == 0 and (n * size >= S or S // n <= SMALLEST_CHUNK))
    parts = jax.tree.map(lambda rows: rows.reshape(chunks, S // chunks, *rows.shape[1:]), (x_SD, targets))
    return jax.tree.map(lambda rows: rows.reshape(S, *rows.shape[2:]), jax.lax.map(chunk, parts))
