"""Preferences: losses of pairs of answers, see jaxlm/common/objectives/preference.py."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.common.objectives.preference import Preference, pair_losses, pair_metrics
from jaxlm.model.language_model import LanguageModel
from jaxlm.model.loss import batch_nats
from jaxlm.ops.ternary_linear import Params
from jaxlm.training.objectives.objective import Extras, Objective, Sums
from shared_tokenizer.data.batches import Batch
from shared_tokenizer.data.pairs import pair_numbers


def preference(kind: Preference, beta: float, loss_chunks: int = 0) -> Objective:
    """Return the objective on batches of pairs `[P, 2, L]`.

    dpo and ipo take `reference` from the extras, the log-probabilities of all pairs `[pairs, 2]`, of which a batch has
    the numbers in `pair` `[P]`. `loss_chunks` cuts the sequence, see `loss_sum`.
    """

    def objective(model: LanguageModel, weights: Params, batch: Batch, extras: Extras) -> Sums:
        log_probs = answer_log_probs(model, weights, batch, loss_chunks)
        tokens = jnp.sum(batch["loss_mask"], axis=-1)  # [P, 2]
        is_pair = jnp.all(tokens > 0, axis=1)
        reference = None if kind == "orpo" else extras["reference"][pair_numbers(batch)]
        found = pair_losses(kind, log_probs, tokens, reference, beta, jnp)
        metrics = pair_metrics(found, log_probs, is_pair, beta, jnp)
        return Sums(jnp.sum(found.loss * is_pair), jnp.sum(is_pair), metrics)

    return objective


def answer_log_probs(model: LanguageModel, weights: Params, batch: Batch, loss_chunks: int = 0) -> jax.Array:
    """Return the summed log-probabilities of the learned tokens of each answer, `[P, 2]`."""
    P, _, L = batch["inputs"].shape
    rows: Any = {name: batch[name].reshape(2 * P, L) for name in ("inputs", "targets", "positions")}
    nats = batch_nats(model, weights, rows, loss_chunks).reshape(P, 2, L)
    return -jnp.sum(nats * batch["loss_mask"], axis=-1)
