"""Cross-entropy of the next token, as in jaxlm/model/loss.py; where asked for, in chunks of the tokens.

The gradient of a chunk is taken while its logits are there, so nothing is computed twice and the backward pass only
scales.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from mlxlm.model.language_model import LanguageModel
from mlxlm.model.trees import flat_arrays

# Arrays `[B, L]` by the names of `shared_tokenizer.data.examples.Example`.
Batch = dict[str, mx.array]

# Losses [...] of logits [..., V] and of what belongs to the same tokens.
TokenLosses = Callable[..., mx.array]
# Of the float32 logits of a chunk. MLX runs ahead of a CPU by some hundred operations, which is several chunks.
LARGEST_CHUNK_BYTES = 8 * 2**20
# As in jaxlm/model/loss.py on an accelerator; a CPU loses no time to short chunks.
SMALLEST_CHUNK_TOKENS = {"cpu": 64, "gpu": 2048}


def loss_sum(model: LanguageModel, batch: Batch, chunks: int = 1) -> tuple[mx.array, mx.array]:
    """Summed cross-entropy in nats over the tokens of the loss mask, and how many they are.

    `chunks` cuts the tokens of the batch; 0 takes as few as keep the logits of one small, 1 computes all at once.
    """
    rows = batch["targets"], batch["loss_mask"]
    return head_loss_sum(model, batch_hidden(model, batch), rows, _masked_nats, chunks), mx.sum(batch["loss_mask"])


def _masked_nats(logits: mx.array, targets: mx.array, mask: mx.array) -> mx.array:
    return nn.losses.cross_entropy(logits, targets) * mask


def batch_hidden(model: LanguageModel, batch: Batch) -> mx.array:
    """What the head sees of a batch, `[B, L, D]`; its documents do not see each other."""
    return model.hidden(batch["inputs"], segment_ids=batch.get("segment_ids"))


def head_loss_sum(
    model: LanguageModel, hidden: mx.array, rows: Sequence[mx.array], losses: TokenLosses, chunks: int
) -> mx.array:
    """Sum of `losses(logits, *rows)`, given what the head sees and rows, all `[B, L, ...]`.

    `chunks` is as in `loss_sum`. Gradients reach the head's parameters and `hidden`, and nothing else.
    """
    head = {name: model[name].trainable_parameters() for name in model.head_modules()}
    tokens = math.prod(hidden.shape[:-1])
    trained = sum(array.size for array in flat_arrays(head).values())
    chunks = min(chunks, tokens) or _chunks(tokens, model.config.vocab_size, trained)
    if chunks == 1:
        return mx.sum(losses(model.head(hidden), *rows))
    pieces = list(zip(*(_cut(array, chunks) for array in rows), strict=True))

    def of_piece(head: Any, hidden: mx.array, piece: Sequence[mx.array]) -> mx.array:
        model.update(head)
        return mx.sum(losses(model.head(hidden), *piece))

    if not model.training:
        return sum(map(of_piece, [head] * len(pieces), _cut(hidden, chunks), pieces), mx.array(0.0))

    total = _sum_with_gradients(of_piece, head, hidden, pieces)
    model.update(head)  # in place of what stood for it in the gradients
    return total


def _sum_with_gradients(
    of_piece: Callable[..., mx.array], head: Any, hidden: mx.array, pieces: Sequence[Sequence[mx.array]]
) -> mx.array:
    """Sum of `of_piece(head, part of hidden, piece)`; all gradients are there once it is."""

    def forward(head: Any, hidden: mx.array) -> Any:
        gradient, dhidden = mx.value_and_grad(of_piece, argnums=(0, 1)), []
        total: Any = None
        for part, piece in zip(_cut(hidden, len(pieces)), pieces, strict=True):
            loss, (dhead, dpart) = gradient(head, part, piece)
            total = (loss, dhead) if total is None else tree_map(mx.add, total, (loss, dhead))
            dhidden.append(dpart)
        return *total, mx.concatenate(dhidden).reshape(hidden.shape)

    def backward(primals: Any, cotangents: Any, outputs: Any) -> Any:
        return tree_map(lambda gradient: gradient * cotangents[0], outputs[1:])

    with_gradients: Any = mx.custom_function(forward)
    with_gradients.vjp(backward)
    return with_gradients(head, hidden)[0]


def _chunks(tokens: int, vocab_size: int, trained: int) -> int:
    """The fewest chunks whose logits are small enough on a device, or which are too short to cut.

    Each chunk makes a gradient of the head's `trained` parameters: no memory is won where its logits are smaller.
    """
    smallest = SMALLEST_CHUNK_TOKENS["gpu" if mx.default_device().type == mx.DeviceType.gpu else "cpu"]
    return math.ceil(tokens / max(LARGEST_CHUNK_BYTES // (4 * vocab_size), smallest, trained // vocab_size))


def _cut(array: mx.array, chunks: int) -> list[mx.array]:
    """The tokens `[B, L, ...]` in so many parts of nearly one size."""
    tokens = array.reshape(-1, *array.shape[2:])
    return cast(list[mx.array], mx.split(tokens, [len(tokens) * number // chunks for number in range(1, chunks)]))
