"""Distillation from a frozen teacher, by the formulas of jaxlm/common/objectives/distillation.py."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.objectives.distillation import Distillation, relation_heads
from jaxlm.model.language_model import LanguageModel
from jaxlm.model.mixers import Projections
from jaxlm.ops.cross_entropy import all_gathered_head, cross_entropy_sum
from jaxlm.ops.logits import head_logits
from jaxlm.ops.shapes import Logits
from jaxlm.ops.ternary_linear import Params
from jaxlm.training.objectives.objective import Extras, Objective, Sums
from jaxlm.training.objectives.token_losses import summed_losses
from shared_tokenizer.data.batches import Batch

# Name of the teacher's parameters among the extras.
TEACHER = "teacher"


def distillation(
    teacher_config: ModelConfig, settings: Distillation, loss_chunks: int = 0, z_loss: float = 0.0
) -> Objective:
    """Return the objective, whose extras hold the parameters of a teacher.

    `loss_chunks` cuts the sequence, `z_loss` is the weight of the z-loss in the cross-entropy, see `loss_sum`.
    """

    def objective(model: LanguageModel, weights: Params, batch: Batch, extras: Extras) -> Sums:
        teacher = _teacher_model(teacher_config, model)
        layers = settings.layers(model.config, teacher_config) if settings.relations_weight else (None, None)
        (x, weight), learned = _forward(model, weights, batch, layers[0])
        operands, taught = jax.lax.stop_gradient(_forward(teacher, extras[TEACHER], batch, layers[1]))
        mask, name = jnp.asarray(batch["loss_mask"]), model.head_modules()[1]
        if settings.weight:
            rows = {"targets": batch["targets"], "mask": mask, "teacher_x": operands[0]}
            matrix = all_gathered_head(operands[1], teacher.head_modules()[1], operands[0].dtype)
            divergence = functools.partial(_live_divergence, settings, teacher_config.logit_softcap)
            losses = functools.partial(_losses, settings, z_loss, divergence)
            loss, metrics = summed_losses(
                losses, x, weight, rows, matrix, chunks=loss_chunks, name=name, soft_cap=model.config.logit_softcap
            )
        else:
            loss, _ = cross_entropy_sum(
                x,
                weight,
                batch["targets"],
                mask,
                chunks=loss_chunks,
                name=name,
                soft_cap=model.config.logit_softcap,
                z_loss=z_loss,
            )
            metrics = {"next_token": loss}
        if settings.relations_weight:
            heads = relation_heads(model.config, teacher_config)
            divergence = relations_divergence(taught, learned, heads, batch.get("segment_ids"), mask)
            loss, metrics = loss + settings.relations_weight * divergence, metrics | {"relations": divergence}
        return Sums(loss, jnp.sum(mask), jax.lax.stop_gradient(metrics))

    return objective


def stored_distillation(settings: Distillation, loss_chunks: int = 0, z_loss: float = 0.0) -> Objective:
    """Return the objective on batches that have the likeliest tokens of a stored teacher (`stored_teacher`)."""

    def objective(model: LanguageModel, weights: Params, batch: Batch, extras: Extras) -> Sums:
        (x, weight), _ = _forward(model, weights, batch, None)
        names = ("targets", "teacher_ids", "teacher_log_probs", "teacher_rest")
        arrays: Any = batch
        rows = {name: arrays[name] for name in names} | {"mask": jnp.asarray(batch["loss_mask"])}
        losses = functools.partial(_losses, settings, z_loss, functools.partial(_stored_divergence, settings))
        loss, metrics = summed_losses(
            losses,
            x,
            weight,
            rows,
            (),
            chunks=loss_chunks,
            name=model.head_modules()[1],
            soft_cap=model.config.logit_softcap,
        )
        return Sums(loss, jnp.sum(rows["mask"]), jax.lax.stop_gradient(metrics))

    return objective


def _teacher_model(config: ModelConfig, student: LanguageModel) -> LanguageModel:
    """Return the teacher's model, which computes as the student's does; its kernel of attention may not fit it."""
    attention = student.attention if config.head_dim == student.config.head_dim else "xla"
    return LanguageModel(config, student.dtype, attention=attention)


def _forward(model: LanguageModel, weights: Params, batch: Batch, layer: int | None) -> tuple[Any, Any]:
    """Return the operands of the logits, and the projections of a layer, None without one."""
    arrays = batch["inputs"], batch["positions"], batch.get("segment_ids")
    if layer is None:
        return model.apply({"params": weights}, *arrays, method="head_operands"), None
    found: Any = model.apply({"params": weights}, *arrays, layer, method="operands_and_projections")
    return found


def _losses(
    settings: Distillation, z_loss: float, divergence_of: Any, logits: Any, rows: Any, matrix: Any
) -> tuple[jax.Array, dict[str, jax.Array]]:
    mask = rows["mask"]
    log_sums = jax.nn.logsumexp(logits, axis=-1)
    nats = log_sums - jnp.take_along_axis(logits, rows["targets"][..., None], axis=-1)[..., 0]
    if z_loss:
        nats += z_loss * jnp.square(log_sums)
    divergence = divergence_of(logits, rows, matrix)
    loss = (1 - settings.weight) * nats + settings.weight * settings.temperature**2 * divergence
    return loss * mask, {"next_token": nats * mask, "teacher_divergence": divergence * mask}


def _live_divergence(settings: Distillation, soft_cap: float | None, logits: Any, rows: Any, matrix: Any) -> jax.Array:
    return logits_divergence(head_logits(rows["teacher_x"], matrix, soft_cap=soft_cap), logits, settings)


def _stored_divergence(settings: Distillation, logits: Any, rows: Any, _: Any) -> jax.Array:
    taught = jnp.concatenate([rows["teacher_log_probs"] / settings.temperature, rows["teacher_rest"][..., None]], -1)
    return _divergence(taught, _with_rest(logits / settings.temperature, rows["teacher_ids"]))


def logits_divergence(teacher: Logits, student: Logits, settings: Distillation) -> jax.Array:
    """Return KL(teacher || student) in nats `[...]` of logits `[..., V]`."""
    teacher, student = (logits / settings.temperature for logits in (teacher, student))
    if settings.top_k and settings.top_k < teacher.shape[-1]:
        _, ids = jax.lax.top_k(teacher, settings.top_k)
        teacher, student = _with_rest(teacher, ids), _with_rest(student, ids)
    return _divergence(teacher, student)


def _divergence(teacher: Any, student: Any) -> jax.Array:
    taught, learned = jax.nn.log_softmax(teacher), jax.nn.log_softmax(student)
    return jnp.sum(jnp.exp(taught) * (taught - learned), axis=-1)


def _with_rest(logits: Any, ids: jax.Array) -> jax.Array:
    """Return the logits of some ids `[..., k]`, and that of all others together, as `[..., k + 1]`."""
    others = jnp.put_along_axis(logits, ids, -jnp.inf, axis=-1, inplace=False)
    rest = jax.nn.logsumexp(others, axis=-1, keepdims=True)
    return jnp.concatenate([jnp.take_along_axis(logits, ids, axis=-1), rest], axis=-1)


def relations_divergence(
    teacher: Projections, student: Projections, heads: int, segment_ids: Any, mask: jax.Array
) -> jax.Array:
    """Return KL(teacher || student) of the relations in nats, the mean over projections and heads, summed over a mask.

    The projections are `[B, L, heads, H]` of each model's own heads, the mask is `[B, L]`.
    """
    B, L = mask.shape
    visible = jnp.tril(jnp.ones((L, L), bool))[None]
    if segment_ids is not None:
        visible = visible & (segment_ids[:, :, None] == segment_ids[:, None, :])

    @jax.checkpoint
    def of_head(pair: Any) -> jax.Array:
        taught, learned = (jax.nn.log_softmax(jnp.where(visible, _relation(each), -1e30)) for each in pair)
        return jnp.sum(jnp.sum(jnp.exp(taught) * (taught - learned), axis=-1) * mask)

    total = jnp.float32(0)
    for name in ("queries", "keys", "values"):
        pair = [
            jnp.moveaxis(getattr(projections, name).reshape(B, L, heads, -1), 2, 0)
            for projections in (teacher, student)
        ]
        total += jnp.sum(jax.lax.map(of_head, pair))  # one head at a time: a relation is [B, L, L]
    return total / (3 * heads)


def _relation(features: jax.Array) -> jax.Array:
    products = jnp.einsum("bqd,bkd->bqk", features, features, preferred_element_type=jnp.float32)
    return products / math.sqrt(features.shape[-1])
