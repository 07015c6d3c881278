"""Cross-entropy of the next token, as in jaxlm/loss.py."""

import mlx.core as mx
import mlx.nn as nn

from mlxlm.data import Batch
from mlxlm.model import LanguageModel


def loss_sum(model: LanguageModel, batch: Batch) -> tuple[mx.array, mx.array]:
    """Summed cross-entropy in nats over the tokens of the loss mask, and how many they are."""
    logits = model.head(model.hidden(batch["inputs"], segment_ids=batch["segment_ids"]))
    nats = nn.losses.cross_entropy(logits, batch["targets"])
    return mx.sum(nats * batch["loss_mask"]), mx.sum(batch["loss_mask"])
