"""Memory that a fine-tuning run will need, as a formula, so that it can be printed before the first step.

Weights, gradients and moments follow from the arrays. The activations are counted in arrays `[tokens, width]` of
float32 that the backward pass of a block needs; their numbers are fitted to measured peaks (see docs/mac.md).
"""

from dataclasses import dataclass

from jaxlm.common.architecture.config import ModelConfig
from mlxlm.finetune.optimizer import Arrays, OptimizerState
from mlxlm.model.language_model import LanguageModel
from mlxlm.model.trees import flat_arrays

_FLOAT32_BYTES = 4
# Arrays of a block that stay until its backward pass: of the width of the residual stream, the heads, the feed-forward.
_HIDDEN_ARRAYS, _HEAD_ARRAYS, _FEED_FORWARD_ARRAYS = 6, 4, 6
# Arrays [tokens, vocabulary] that the loss holds at the same time.
_LOGIT_ARRAYS = 3
# Blocks that recomputation holds at the same time, and copies of the largest matrix that is being quantized.
_RECOMPUTED_BLOCKS = 2.5
_QUANTIZER_ARRAYS = 6


@dataclass(frozen=True)
class FinetuneMemory:
    """The parts of the memory, in bytes."""

    weights: int
    optimizer: int
    """Moments, and the gradients of a step."""
    activations: int
    quantizer: int
    """Copies of the largest latent matrix while it is quantized."""
    teacher: int = 0
    """Weights of the model that is learned from."""

    @property
    def total(self) -> int:
        return self.weights + self.optimizer + self.activations + self.quantizer + self.teacher

    def __str__(self) -> str:
        parts = {"weights": self.weights, "optimizer": self.optimizer, "activations": self.activations + self.quantizer}
        if self.teacher:
            parts["teacher"] = self.teacher
        shown = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in parts.items())
        return f"memory: about {self.total / 2**30:.2f} GiB ({shown})"


def finetune_memory(
    model: LanguageModel,
    trained: Arrays,
    moments: OptimizerState,
    tokens: int,
    *,
    grad_checkpoint: bool,
    loss_chunks: int,
    num_layers: int,
    is_latent: bool,
    teacher_bytes: int = 0,
) -> FinetuneMemory:
    """Return the memory of steps of so many tokens a micro-batch, through which gradients flow in the last layers.

    `is_latent` says that the trained matrices are quantized in every step. Within a quarter of the peaks that were
    measured.
    """
    gradients = sum(array.nbytes for array in trained.values())
    moment_bytes = sum(array.nbytes for part in moments.values() for array in part.values())
    return FinetuneMemory(
        weights=sum(array.nbytes for array in flat_arrays(model.parameters()).values()),
        optimizer=moment_bytes + gradients,
        quantizer=_QUANTIZER_ARRAYS * _FLOAT32_BYTES * max(array.size for array in trained.values()) * is_latent,
        activations=_activations(model.config, tokens, grad_checkpoint, loss_chunks, num_layers),
        teacher=teacher_bytes,
    )


def _activations(config: ModelConfig, tokens: int, grad_checkpoint: bool, loss_chunks: int, num_layers: int) -> int:
    hidden = config.hidden_size
    block = _HIDDEN_ARRAYS * hidden + _FEED_FORWARD_ARRAYS * config.intermediate_size
    block += _HEAD_ARRAYS * max((config.num_heads + config.num_kv_heads) * config.head_dim, hidden)
    blocks = _RECOMPUTED_BLOCKS * block + num_layers * hidden if grad_checkpoint else num_layers * block
    logits = _LOGIT_ARRAYS * config.vocab_size / max(loss_chunks, 1)
    return int(_FLOAT32_BYTES * tokens * (blocks + logits))
