"""The loss of a batch: summed cross-entropy of the next token."""

from typing import Any

import jax

from jaxlm.model.language_model import LanguageModel
from jaxlm.ops.cross_entropy import cross_entropy_sum
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
    operands: Any = model.apply(
        {"params": params}, batch["inputs"], batch["positions"], batch.get("segment_ids"), method="head_operands"
    )
    x, weight = operands
    name = model.head_modules()[1]
    cap = model.config.logit_softcap
    rows = batch["targets"], batch["loss_mask"]
    return cross_entropy_sum(x, weight, *rows, chunks=chunks, name=name, soft_cap=cap, z_loss=z_loss)
