"""Cross-entropy of the next token, as in jaxlm/ops/cross_entropy.py; optionally in chunks of the tokens.

The gradient of a chunk is computed while its logits exist (as in Liger Kernel, arXiv 2410.10989), so nothing is
computed twice and the backward pass only multiplies by the gradient of the loss.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from mlxlm.model.language_model import LanguageModel
from mlxlm.model.shapes import HeadInputs, HeadOutputs, Hidden
from mlxlm.model.trees import flat_arrays

# Arrays `[B, L]` by the names of `shared_tokenizer.data.examples.Example`.
Batch = dict[str, mx.array]

# Returns losses `[...]` of logits `[..., V]` and of further arrays `[..., *]` of the same tokens, and then any further
# numbers `[...]` of these tokens.
TokenLosses = Callable[..., tuple[mx.array, ...]]
# Bytes of the float32 logits of a chunk. MLX runs ahead of a CPU by some hundred operations, which is several chunks.
LARGEST_CHUNK_BYTES = 8 * 2**20
# As in jaxlm/ops/cross_entropy.py on an accelerator; a CPU loses no time to short chunks.
SMALLEST_CHUNK_TOKENS = {"cpu": 64, "gpu": 2048}


def loss_sum(model: LanguageModel, batch: Batch, chunks: int = 1, z_loss: float = 0.0) -> tuple[mx.array, mx.array]:
    """Return the cross-entropy in nats, summed over the tokens of the loss mask, and the number of these tokens.

    `chunks` is the number of parts in which the logits of the batch are computed: 1 computes all at once, 0 takes the
    fewest parts whose logits are small. `z_loss` is the weight of the z-loss, which the sum then includes.
    """
    nats = loss_of_hidden(model, batch_hidden(model, batch), batch, chunks, z_loss)
    return nats, mx.sum(batch["loss_mask"])


def loss_of_hidden(
    model: LanguageModel, hidden: Hidden, batch: Batch, chunks: int = 1, z_loss: float = 0.0
) -> mx.array:
    """Return the same sum for the inputs of the head (see `batch_hidden`)."""

    def masked_nats(logits: HeadOutputs, targets: mx.array, mask: mx.array) -> tuple[mx.array]:
        return (token_nats(logits, targets, z_loss) * mask,)

    return head_loss_sums(model, hidden, (batch["targets"], batch["loss_mask"]), masked_nats, chunks)[0]


def token_nats(logits: HeadOutputs, targets: mx.array, z_loss: float = 0.0) -> mx.array:
    """Return the cross-entropy of every token, plus z_loss log(sum(exp(logits)))^2 (PaLM, arXiv 2204.02311)."""
    nats = nn.losses.cross_entropy(logits, targets)
    return nats + z_loss * mx.square(mx.logsumexp(logits, axis=-1)) if z_loss else nats


def batch_nats(model: LanguageModel, batch: Batch, chunks: int = 1) -> mx.array:
    """Return the cross-entropy of each token of a batch in nats, `[B, L]`; `chunks` is as in `loss_sum`.

    Of several chunks the backward pass computes the logits once more: before it, the weight of a token is not known.
    """
    hidden, targets = batch_hidden(model, batch), batch["targets"]
    head = _head(model)
    chunks = _resolved(chunks, model, head, hidden)
    if chunks == 1:
        return token_nats(model.head(hidden), targets)

    def of_piece(head: Any, hidden: HeadInputs, piece: Sequence[mx.array]) -> mx.array:
        model.update(head)
        return token_nats(model.head(hidden), piece[0])

    def forward(head: Any, hidden: Hidden) -> mx.array:
        parts = zip(_cut(hidden, chunks), _cut(targets, chunks), strict=True)
        return mx.concatenate([of_piece(head, part, [wanted]) for part, wanted in parts]).reshape(targets.shape)

    def backward(primals: Any, cotangent: mx.array, output: mx.array) -> Any:
        pieces = list(zip(_cut(targets, chunks), _cut(cotangent, chunks), strict=True))

        def weighted(head: Any, hidden: HeadInputs, piece: Sequence[mx.array]) -> mx.array:
            return mx.sum(of_piece(head, hidden, piece) * piece[1])

        return _summed_gradients(weighted, primals[0], primals[1], pieces)[1:]

    nats: Any = mx.custom_function(forward)
    nats.vjp(backward)
    found = nats(head, hidden)
    model.update(head)  # the forward pass, where it is differentiated, has put traced parameters into the model
    return found


def batch_hidden(model: LanguageModel, batch: Batch, block_inputs: list[Hidden] | None = None) -> Hidden:
    """Return the inputs of the head for a batch; its documents do not attend to each other.

    `block_inputs` receives the input of every block.
    """
    return model.hidden(batch["inputs"], segment_ids=batch.get("segment_ids"), block_inputs=block_inputs)


def head_loss_sums(
    model: LanguageModel, hidden: Hidden, rows: Sequence[mx.array], losses: TokenLosses, chunks: int
) -> tuple[mx.array, ...]:
    """Return the sums of `losses(logits, *rows)`, where `hidden` is the head's input and rows are `[B, L, ...]`.

    `chunks` is as in `loss_sum`. Gradients are those of the first sum; they reach the head's parameters and `hidden`,
    and nothing else.
    """
    head = _head(model)
    chunks = _resolved(chunks, model, head, hidden)
    if chunks == 1:
        return _sums(losses(model.head(hidden), *rows))
    pieces = list(zip(*(_cut(array, chunks) for array in rows), strict=True))

    def of_piece(head: Any, hidden: HeadInputs, piece: Sequence[mx.array]) -> tuple[mx.array, ...]:
        model.update(head)
        return _sums(losses(model.head(hidden), *piece))

    if not model.training:
        found = map(of_piece, [head] * len(pieces), _cut(hidden, chunks), pieces)
        return tuple(sum(numbers, mx.array(0.0)) for numbers in zip(*found, strict=True))

    totals = _sums_with_gradients(of_piece, head, hidden, pieces)
    model.update(head)  # the gradients have put traced parameters into the model
    return totals


def _sums(arrays: Sequence[mx.array]) -> tuple[mx.array, ...]:
    return tuple(map(mx.sum, arrays))


def _head(model: LanguageModel) -> dict[str, Any]:
    """Return the trainable parameters of the head by module."""
    return {name: model[name].trainable_parameters() for name in model.head_modules()}


def _resolved(chunks: int, model: LanguageModel, head: Any, hidden: Hidden) -> int:
    """Return the number of chunks that a setting means for the inputs of the head."""
    tokens = math.prod(hidden.shape[:-1])
    trained = sum(array.size for array in flat_arrays(head).values())
    return min(chunks, tokens) or _chunks(tokens, model.config.vocab_size, trained)


def _sums_with_gradients(
    of_piece: Callable[..., tuple[mx.array, ...]], head: Any, hidden: Hidden, pieces: Sequence[Sequence[mx.array]]
) -> tuple[mx.array, ...]:
    """Return the sums of `of_piece(head, part of hidden, piece)`.

    The forward pass has computed the gradients of the first one too.
    """

    def forward(head: Any, hidden: Hidden) -> Any:
        return _summed_gradients(of_piece, head, hidden, pieces)

    def backward(primals: Any, cotangents: Any, outputs: Any) -> Any:
        return tree_map(lambda gradient: gradient * cotangents[0][0], outputs[1:])

    with_gradients: Any = mx.custom_function(forward)
    with_gradients.vjp(backward)
    return with_gradients(head, hidden)[0]


def _summed_gradients(
    of_piece: Callable[..., Any], head: Any, hidden: Hidden, pieces: Sequence[Sequence[mx.array]]
) -> tuple[Any, Any, mx.array]:
    """Return the sum of `of_piece(head, part of hidden, piece)` and its gradients by the head and by `hidden`.

    Of several numbers these are the sums of all, and the gradients of the first.
    """
    gradient, dhidden = mx.value_and_grad(of_piece, argnums=(0, 1)), []
    total: Any = None
    for part, piece in zip(_cut(hidden, len(pieces)), pieces, strict=True):
        loss, (dhead, dpart) = gradient(head, part, piece)
        total = (loss, dhead) if total is None else tree_map(mx.add, total, (loss, dhead))
        dhidden.append(dpart)
    return *total, mx.concatenate(dhidden).reshape(hidden.shape)


def _chunks(tokens: int, vocab_size: int, trained: int) -> int:
    """Return the fewest chunks whose logits are small enough for the device, or that are too short to cut.

    Each chunk computes a gradient of all `trained` parameters of the head, so logits smaller than that save no memory.
    """
    smallest = SMALLEST_CHUNK_TOKENS["gpu" if mx.default_device().type == mx.DeviceType.gpu else "cpu"]
    return math.ceil(tokens / max(LARGEST_CHUNK_BYTES // (4 * vocab_size), smallest, trained // vocab_size))


def _cut(array: mx.array, chunks: int) -> list[mx.array]:
    """Split an array `[B, L, ...]` along its tokens into `chunks` arrays `[tokens, ...]` of nearly the same size."""
    tokens = array.reshape(-1, *array.shape[2:])
    return cast(list[mx.array], mx.split(tokens, [len(tokens) * number // chunks for number in range(1, chunks)]))
