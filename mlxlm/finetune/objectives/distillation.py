"""Distillation from a frozen teacher, by the formulas of jaxlm/common/objectives/distillation.py."""

import math
from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from jaxlm.common.objectives.distillation import Distillation, relation_heads
from mlxlm.finetune.objectives.objective import Objective, Sums
from mlxlm.model.language_model import LanguageModel
from mlxlm.model.loss import Batch, batch_hidden, head_loss_sums, loss_of_hidden, token_nats


def distillation(
    teacher: LanguageModel, settings: Distillation, loss_chunks: int = 1, z_loss: float = 0.0
) -> Objective:
    """Return the objective of a student of this teacher.

    `loss_chunks` cuts the tokens, `z_loss` is the weight of the z-loss in the cross-entropy, see `loss_sum`.
    """

    def losses(logits: mx.array, targets: mx.array, mask: mx.array, teacher_hidden: mx.array) -> tuple[mx.array, ...]:
        divergence = logits_divergence(mx.stop_gradient(teacher.head(teacher_hidden)), logits, settings)
        return _token_losses(logits, targets, mask, divergence, settings, z_loss)

    def objective(model: LanguageModel, batch: Batch) -> Sums:
        learned_inputs: list[mx.array] = []
        taught_inputs: list[mx.array] = []
        hidden = batch_hidden(model, batch, learned_inputs)
        mask, metrics = batch["loss_mask"], {}
        teacher_hidden = mx.stop_gradient(batch_hidden(teacher, batch, taught_inputs))
        if settings.weight:
            rows = batch["targets"], mask, teacher_hidden
            loss, nats, divergence = head_loss_sums(model, hidden, rows, losses, loss_chunks)
            metrics = {"next_token": nats, "teacher_divergence": divergence}
        else:
            loss = loss_of_hidden(model, hidden, batch, loss_chunks, z_loss)
            metrics = {"next_token": loss}
        if settings.relations_weight:
            layer, theirs = settings.layers(model.config, teacher.config)
            taught = [mx.stop_gradient(array) for array in teacher.projections(taught_inputs[theirs], theirs)]
            learned = model.projections(learned_inputs[layer], layer)
            heads = relation_heads(model.config, teacher.config)
            divergence = relations_divergence(taught, learned, heads, batch.get("segment_ids"), mask)
            loss, metrics = loss + settings.relations_weight * divergence, metrics | {"relations": divergence}
        return Sums(loss, mx.sum(mask), metrics)

    return objective


def stored_distillation(settings: Distillation, loss_chunks: int = 1, z_loss: float = 0.0) -> Objective:
    """Return the objective on batches that have the likeliest tokens of a stored teacher (`stored_teacher`)."""

    def losses(
        logits: mx.array, targets: mx.array, mask: mx.array, ids: mx.array, log_probs: mx.array, rest: mx.array
    ) -> tuple[mx.array, ...]:
        taught = mx.concatenate([log_probs / settings.temperature, rest[..., None]], axis=-1)
        divergence = _divergence(taught, _with_rest(logits / settings.temperature, ids))
        return _token_losses(logits, targets, mask, divergence, settings, z_loss)

    def objective(model: LanguageModel, batch: Batch) -> Sums:
        names = ("targets", "loss_mask", "teacher_ids", "teacher_log_probs", "teacher_rest")
        rows = [batch[name] for name in names]
        loss, nats, divergence = head_loss_sums(model, batch_hidden(model, batch), rows, losses, loss_chunks)
        return Sums(loss, mx.sum(batch["loss_mask"]), {"next_token": nats, "teacher_divergence": divergence})

    return objective


def _token_losses(
    logits: mx.array, targets: mx.array, mask: mx.array, divergence: mx.array, settings: Distillation, z_loss: float
) -> tuple[mx.array, ...]:
    nats = token_nats(logits, targets, z_loss)
    loss = (1 - settings.weight) * nats + settings.weight * settings.temperature**2 * divergence
    return loss * mask, nats * mask, divergence * mask


def logits_divergence(teacher: mx.array, student: mx.array, settings: Distillation) -> mx.array:
    """Return KL(teacher || student) in nats `[...]` of logits `[..., V]`."""
    teacher, student = teacher / settings.temperature, student / settings.temperature
    if settings.top_k and settings.top_k < teacher.shape[-1]:
        ids = mx.argpartition(-teacher, settings.top_k - 1, axis=-1)[..., : settings.top_k]
        teacher, student = _with_rest(teacher, ids), _with_rest(student, ids)
    return _divergence(teacher, student)


def _divergence(teacher: mx.array, student: mx.array) -> mx.array:
    taught, learned = nn.log_softmax(teacher, axis=-1), nn.log_softmax(student, axis=-1)
    return mx.sum(mx.exp(taught) * (taught - learned), axis=-1)


def _with_rest(logits: mx.array, ids: mx.array) -> mx.array:
    """Return the logits of some ids `[..., k]`, and that of all others together, as `[..., k + 1]`."""
    others = mx.put_along_axis(logits, ids, mx.array(-mx.inf), axis=-1)
    rest = mx.logsumexp(others, axis=-1, keepdims=True)
    return mx.concatenate([mx.take_along_axis(logits, ids, axis=-1), rest], axis=-1)


def relations_divergence(
    teacher: Sequence[mx.array],
    student: Sequence[mx.array],
    heads: int,
    segment_ids: mx.array | None,
    mask: mx.array,
) -> mx.array:
    """Return KL(teacher || student) of the relations in nats, the mean over projections and heads, summed over a mask.

    The projections are `[B, L, width]`, the mask is `[B, L]`.
    """
    B, L = mask.shape
    visible = mx.tril(mx.ones((L, L), mx.bool_))[None, None]
    if segment_ids is not None:
        visible = visible & (segment_ids[:, None, :, None] == segment_ids[:, None, None, :])
    total = mx.array(0.0)
    for pair in zip(teacher, student, strict=True):
        taught, learned = (
            nn.log_softmax(mx.where(visible, _relations(array.reshape(B, L, heads, -1)), -1e30), axis=-1)
            for array in pair
        )
        total = total + mx.sum(mx.sum(mx.exp(taught) * (taught - learned), axis=(1, 3)) * mask)
    return total / (3 * heads)


def _relations(features: mx.array) -> mx.array:
    """Return A A^T / sqrt(d) `[B, heads, L, L]` of features `[B, L, heads, d]`, in float32."""
    features = features.astype(mx.float32).transpose(0, 2, 1, 3)
    return features @ features.transpose(0, 1, 3, 2) / math.sqrt(features.shape[-1])
