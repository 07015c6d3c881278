"""Distillation: a student learns from the distribution of a frozen teacher and from the text (arXiv 1503.02531)."""

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.formats.open_model import open_model
from mlxlm.finetune.objectives.objective import Objective, Sums
from mlxlm.load import built_model
from mlxlm.model.language_model import LanguageModel
from mlxlm.model.loss import Batch, batch_hidden, head_loss_sum, token_nats
from shared_tokenizer.load import find_tokenizer
from shared_tokenizer.tokenizers.tokenizer import Tokenizer


def distillation(
    teacher: LanguageModel, weight: float, temperature: float, chunks: int = 1, z_loss: float = 0.0
) -> Objective:
    """Return (1 - weight) * cross-entropy + weight * T^2 * KL(teacher || student), of logits divided by T in the KL."""

    def losses(logits: mx.array, targets: mx.array, mask: mx.array, teacher_hidden: mx.array) -> mx.array:
        taught = log_softmax(teacher.head(teacher_hidden))
        divergence = mx.sum(mx.exp(taught) * (taught - log_softmax(logits)), axis=-1)
        nats = token_nats(logits, targets, z_loss)
        # T^2 keeps the gradient of the softened divergence as large as that of the cross-entropy.
        return ((1 - weight) * nats + weight * temperature**2 * divergence) * mask

    def log_softmax(logits: mx.array) -> mx.array:
        return nn.log_softmax(logits / temperature, axis=-1)

    def objective(model: LanguageModel, batch: Batch) -> Sums:
        rows = batch["targets"], batch["loss_mask"], mx.stop_gradient(batch_hidden(teacher, batch))
        loss = head_loss_sum(model, batch_hidden(model, batch), rows, losses, chunks)
        return Sums(loss, mx.sum(batch["loss_mask"]), {})

    return objective


def open_teacher(path: Path, student: ModelConfig, tokenizer: Tokenizer, seq_len: int) -> LanguageModel:
    """Open the frozen teacher of a student that is trained on sequences of `seq_len` tokens.

    Raises ValueError where it is no dense model, has another vocabulary or cannot see a whole sequence.
    """
    artifact = open_model(path)
    config = artifact.config
    if config.has_packed_form:
        raise ValueError(f"teacher: {path}: found a quantized model, expected a dense one")
    if config.vocab_size != student.vocab_size:
        raise ValueError(
            f"teacher: {path}: found a vocabulary of {config.vocab_size} tokens, expected the model's "
            f"{student.vocab_size}"
        )
    found = find_tokenizer(path, artifact.tokenizer_metadata)
    if found is not None and found.fingerprint != tokenizer.fingerprint:
        raise ValueError(
            f"teacher: {path}: found tokenizer {found.fingerprint[:12]}..., expected the data's "
            f"{tokenizer.fingerprint[:12]}...; name a teacher with the same tokenizer"
        )
    if config.max_seq_len < seq_len:
        raise ValueError(
            f"teacher: {path}: found a context of {config.max_seq_len}, expected at least seq_len {seq_len}"
        )
    teacher = built_model(artifact)
    teacher.freeze()
    teacher.eval()
    return teacher
