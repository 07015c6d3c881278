"""The loss of a batch: cross-entropy of the next token, summed or of each token."""

from typing import Any

import jax

from jaxlm.model.language_model import LanguageModel
from jaxlm.ops.cross_entropy import cross_entropy_sum, token_cross_entropy
from jaxlm.ops.ternary_linear import Params
from shared_tokenizer.data.batches import Batch


def loss_sum(
    model: LanguageModel, params: Params, batch: Batch, chunks: int = 0, z_loss: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Return the summed cross-entropy in nats over the tokens of the loss mask, and the number of these tokens.

    `chunks` cuts the sequence, so that the logits of all tokens never exist, and `z_loss` is the weight of the z-loss,
    which the sum then includes (see `cross_entropy_sum`). Raises ValueError where `chunks` does not divide the
    sequence.
    """
    x, weight, name = _head_operands(model, params, batch)
    cap = model.config.logit_softcap
    rows = batch["targets"], batch["loss_mask"]
    return cross_entropy_sum(
        x, weight, *rows, chunks=chunks, name=name, soft_cap=cap, z_loss=z_loss, backward_dtype=model.backward_dtype
    )


def batch_nats(model: LanguageModel, params: Params, batch: Batch, chunks: int = 0) -> jax.Array:
    """Return the cross-entropy of each token of a batch in nats, `[B, L]`, in the mask or not; see `loss_sum`."""
    x, weight, name = _head_operands(model, params, batch)
    cap = model.config.logit_softcap
    return token_cross_entropy(x, weight, batch["targets"], chunks=chunks, name=name, soft_cap=cap)


def _head_operands(model: LanguageModel, params: Params, batch: Batch) -> tuple[Any, Any, str]:
    """Return the inputs of the head, its weight and the name of its layer."""
    operands: Any = model.apply(
        {"params": params}, batch["inputs"], batch["positions"], batch.get("segment_ids"), method="head_operands"
    )
    return *operands, model.head_modules()[1]
