"""Distillation: what a student learns from a frozen teacher, as settings and as formulas in numpy.

Of the logits (arXiv 1503.02531), with temperature T and weight w, for every token of the loss mask:

    (1 - w) * cross-entropy + w * T^2 * KL(softmax(teacher / T) || softmax(student / T))

T^2 keeps the gradient of the softened divergence as large as that of the cross-entropy. With top-k the distributions
have k + 1 outcomes: the k likeliest tokens of the teacher, and all others together.

Of the relations (MiniLM, arXiv 2012.15828; BitDistill, arXiv 2510.13998), for the outputs A `[L, width]` of q_proj,
k_proj and v_proj of one layer, split into heads `[L, d]`:

    relation(A) = softmax(A A^T / sqrt(d)), over the tokens up to a token's own, of its document
    mean over the three projections and the heads of KL(relation(teacher) || relation(student))
"""

import math
from dataclasses import dataclass

import numpy as np

from jaxlm.common.architecture.config import ModelConfig


@dataclass(frozen=True)
class Distillation:
    """The settings of a distillation (see RunConfig)."""

    weight: float = 0.5
    temperature: float = 2.0
    top_k: int = 0
    relations_weight: float = 0.0
    relations_layer: int | None = None
    teacher_layer: int | None = None

    def layers(self, student: ModelConfig, teacher: ModelConfig) -> tuple[int, int]:
        """Return the layers whose relations are compared, of student and teacher.

        Without settings the student's is its last layer, and the teacher's that of the same relative depth. Raises
        ValueError where a layer does not exist, or has no attention.
        """
        layer = student.num_layers - 1 if self.relations_layer is None else self.relations_layer
        _check_layer("teacher_relations_layer", layer, student, "the model")
        theirs = self.teacher_layer
        if theirs is None:
            theirs = max(0, round((layer + 1) * teacher.num_layers / student.num_layers) - 1)
        _check_layer("teacher_layer", theirs, teacher, "the teacher")
        return layer, theirs


def _check_layer(name: str, layer: int, config: ModelConfig, whose: str) -> None:
    if layer >= config.num_layers:
        raise ValueError(f"{name}: found {layer}, expected 0 to {config.num_layers - 1}, the layers of {whose}")
    mixers = config.token_mixer * config.num_repeats
    if mixers[layer] != "attention":
        attention = [number for number, mixer in enumerate(mixers) if mixer == "attention"]
        raise ValueError(
            f"{name}: found layer {layer}, which is {mixers[layer]} and has no queries, keys and values; expected "
            + (f"one of {attention}" if attention else "a model with attention; leave teacher_relations_weight out")
        )


def relation_heads(student: ModelConfig, teacher: ModelConfig) -> int:
    """Return the number of heads that the projections of both models are split into.

    It is the largest that divides the width of each projection, and is at most the student's number of heads.
    """
    widths = [heads * model.head_dim for model in (student, teacher) for heads in (model.num_heads, model.num_kv_heads)]
    common = math.gcd(*widths)
    return max(number for number in range(1, student.num_heads + 1) if common % number == 0)


def logits_divergence(teacher: np.ndarray, student: np.ndarray, temperature: float, top_k: int = 0) -> np.ndarray:
    """Return KL(teacher || student) in nats `[...]` of logits `[..., V]`, in float64."""
    taught, learned = (_log_softmax(logits / temperature) for logits in (teacher, student))
    if top_k:
        best = np.argsort(-teacher, axis=-1, kind="stable")[..., :top_k]
        taught, learned = _with_rest(taught, best), _with_rest(learned, best)
    return np.sum(np.exp(taught) * (taught - learned), axis=-1)


def relations_divergence(
    teacher: np.ndarray, student: np.ndarray, heads: int, segment_ids: np.ndarray | None = None
) -> np.ndarray:
    """Return KL(teacher || student) in nats `[B, L]`, the mean over the heads, of one projection `[B, L, width]`."""
    B, L, _ = student.shape
    visible = np.tril(np.ones((B, L, L), bool))
    if segment_ids is not None:
        visible &= segment_ids[:, :, None] == segment_ids[:, None, :]
    found = np.zeros((B, L))
    for head in range(heads):
        taught, learned = (
            _log_softmax(np.where(visible, _relation(array.reshape(B, L, heads, -1)[:, :, head]), -1e30))
            for array in (teacher, student)
        )
        found += np.sum(np.exp(taught) * (taught - learned), axis=-1) / heads
    return found


def _relation(features: np.ndarray) -> np.ndarray:
    features = features.astype(np.float64)
    return features @ features.swapaxes(1, 2) / math.sqrt(features.shape[-1])


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def _with_rest(log_probabilities: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return the log-probabilities of some ids `[..., k]`, and of all others together, as `[..., k + 1]`."""
    kept = np.take_along_axis(log_probabilities, ids, axis=-1)
    others = np.exp(log_probabilities)
    np.put_along_axis(others, ids, 0, axis=-1)
    return np.concatenate([kept, np.log(others.sum(axis=-1, keepdims=True))], axis=-1)
