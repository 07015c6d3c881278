"""Preferences: losses of pairs of answers, as in jaxlm/training/objectives/preference.py."""

import mlx.core as mx

from jaxlm.common.objectives.preference import Preference, pair_losses, pair_metrics
from mlxlm.finetune.objectives.objective import Objective, Sums
from mlxlm.model.language_model import LanguageModel
from mlxlm.model.loss import Batch, batch_nats


def preference(kind: Preference, beta: float, loss_chunks: int = 1) -> Objective:
    """Return the objective on batches of pairs `[P, 2, L]`.

    dpo and ipo take the log-probabilities under the reference from the batch, `reference` `[P, 2]`. `loss_chunks` cuts
    the tokens, see `loss_sum`.
    """

    def objective(model: LanguageModel, batch: Batch) -> Sums:
        log_probs = answer_log_probs(model, batch, loss_chunks)
        tokens = mx.sum(batch["loss_mask"], axis=-1)  # [P, 2]
        is_pair = mx.all(tokens > 0, axis=1)
        reference = None if kind == "orpo" else batch["reference"]
        found = pair_losses(kind, log_probs, tokens, reference, beta, mx)
        metrics = pair_metrics(found, log_probs, is_pair, beta, mx)
        return Sums(mx.sum(found.loss * is_pair), mx.sum(is_pair), metrics)

    return objective


def answer_log_probs(model: LanguageModel, batch: Batch, loss_chunks: int = 1) -> mx.array:
    """Return the summed log-probabilities of the learned tokens of each answer, `[P, 2]`."""
    P, _, L = batch["inputs"].shape
    rows = {name: batch[name].reshape(2 * P, L) for name in ("inputs", "targets")}
    nats = batch_nats(model, rows, loss_chunks).reshape(P, 2, L)
    return -mx.sum(nats * batch["loss_mask"], axis=-1)
