"""Cross-entropy of the next token, as in jaxlm/loss.py."""

import mlx.core as mx
import mlx.nn as nn

from mlxlm.data import Batch
from mlxlm.model import LanguageModel


def loss_sum(model: LanguageModel, batch: Batch) -> tuple[mx.array, mx.array]:
    """Summed cross-entropy in nats over the tokens of the loss mask, and how many they are."""
    return masked_sum(nn.losses.cross_entropy(batch_logits(model, batch), batch["targets"]), batch)


def batch_logits(model: LanguageModel, batch: Batch) -> mx.array:
    """Logits of a batch `[B, L, V]`; its documents do not see each other."""
    return model.head(model.hidden(batch["inputs"], segment_ids=batch["segment_ids"]))


def masked_sum(losses: mx.array, batch: Batch) -> tuple[mx.array, mx.array]:
    """Sum of the losses `[B, L]` of the tokens of the loss mask, and how many they are."""
    return mx.sum(losses * batch["loss_mask"]), mx.sum(batch["loss_mask"])
