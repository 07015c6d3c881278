"""Cross-entropy of the next token, over the vocabulary in chunks of the sequence: full logits never exist.

The gradient of a chunk is taken while its logits are there (as Liger Kernel does, arXiv 2410.10989), so nothing is
computed twice and the backward pass only scales.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.model.language_model import LanguageModel
from jaxlm.ops.ternary_linear import Params, TernaryWeight
from jaxlm.parallel.sharding import batch_ways, constrain, gather_codes, target_platform
from shared_tokenizer.data.batches import Batch

# Of the float32 logits of a chunk, on a CPU: they should stay in its cache.
LARGEST_CHUNK_BYTES = 16 * 2**20
# Each chunk adds to the whole gradient of the head, which takes an accelerator as long as the work on some 300 tokens.
SMALLEST_CHUNK_TOKENS = {"cpu": 512, "accelerator": 2048}


def loss_sum(model: LanguageModel, params: Params, batch: Batch, chunks: int = 0) -> tuple[jax.Array, jax.Array]:
    """Summed cross-entropy in nats over the tokens of the loss mask, and how many they are.

    `chunks` cuts the sequence; 0 takes as few as keep the logits of one small, 1 computes all logits at once.
    Raises ValueError where `chunks` does not divide the sequence.
    """
    B, L = batch["inputs"].shape
    chunks = chunks or _chunks(B, L, model.config.vocab_size)
    if L % chunks:
        raise ValueError(f"loss_chunks: found {chunks}, expected a divisor of seq_len {L}")
    hidden: Any = model.apply(
        {"params": params}, batch["inputs"], batch["positions"], batch.get("segment_ids"), method="hidden"
    )
    head = {name: params[name] for name in model.head_modules()}
    loss = _plain if chunks == 1 else functools.partial(_chunked, chunks=chunks)
    return loss(model, head, hidden, batch["targets"], batch["loss_mask"]), jnp.sum(batch["loss_mask"])


def _plain(model: LanguageModel, head: Params, hidden: Any, targets: Any, mask: Any) -> jax.Array:
    logits: Any = model.apply({"params": head}, hidden, method="head")
    return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(logits, targets) * mask)


def _chunked(model: LanguageModel, head: Params, hidden: Any, targets: Any, mask: Any, chunks: int) -> jax.Array:
    def cut(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(x.shape[0], chunks, -1, *x.shape[2:]), 1, 0)

    return _scanned(model, head, cut(hidden), cut(targets), cut(mask))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scanned(model: LanguageModel, head: Params, hidden: Any, targets: Any, mask: Any) -> jax.Array:
    """The loss of chunks `[chunks, B, L / chunks, ...]`."""
    head = _brought_together(model, head)

    def add(total, chunk):
        return total + _plain(model, head, *chunk), None

    return jax.lax.scan(add, jnp.zeros(()), (hidden, targets, mask))[0]


def _brought_together(model: LanguageModel, head: Params) -> Params:
    """The head with its matrix whole along `fsdp` and, where it is float, in the model's precision.

    Once for all chunks: left in their loop, XLA for CPUs would do it for each.
    """
    name = model.head_modules()[1]
    weight = head[name]["weight"]
    if isinstance(weight, TernaryWeight):
        weight = weight.replace(codes=gather_codes(weight.codes, name))
    elif model.has_float_head():
        weight = constrain(weight.astype(model.dtype), "vocab", None)
    return head | {name: head[name] | {"weight": weight}}


def _forward(model, head, hidden, targets, mask):
    leaves, structure = jax.tree.flatten(_brought_together(model, head))
    is_float = [jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves]  # codes have no gradient

    def loss_of(floats, hidden, targets, mask):
        rest = iter(floats)
        joined = [next(rest) if there else leaf for leaf, there in zip(leaves, is_float, strict=True)]
        return _plain(model, structure.unflatten(joined), hidden, targets, mask)

    floats = [leaf for leaf, there in zip(leaves, is_float, strict=True) if there]
    # As wide as the parameters, which gradients are to be.
    dtypes = [leaf.dtype for leaf, there in zip(jax.tree.leaves(head), is_float, strict=True) if there]

    # Devices that share the batch sum up apart, so that the head's gradient is reduced once and not once a chunk.
    B, ways = hidden.shape[1], batch_ways()
    ways = ways if B % ways == 0 else 1
    gradient = jax.vmap(jax.value_and_grad(loss_of, argnums=(0, 1)), in_axes=(None, 0, 0, 0))

    def apart(x):
        return constrain(x.reshape(ways, B // ways, *x.shape[1:]), "batch", *[None] * x.ndim)

    def add(totals, chunk):
        wide = [x.astype(dtype) for x, dtype in zip(floats, dtypes, strict=True)]
        loss, (dfloats, dhidden) = gradient(wide, *map(apart, chunk))
        return jax.tree.map(jnp.add, totals, (loss, dfloats)), dhidden.reshape(B, *dhidden.shape[2:])

    def zeros(x, dtype):
        return constrain(jnp.zeros((ways, *x.shape), dtype), "batch")

    nothing = zeros(jnp.zeros(()), jnp.float32), [zeros(x, dtype) for x, dtype in zip(floats, dtypes, strict=True)]
    (losses, dfloats), dhidden = jax.lax.scan(add, nothing, (hidden, targets, mask))
    loss = jnp.sum(losses)
    rest = (jnp.sum(each, axis=0) for each in dfloats)
    dhead = [
        next(rest) if there else np.zeros(leaf.shape, jax.dtypes.float0)
        for leaf, there in zip(leaves, is_float, strict=True)
    ]
    return loss, (structure.unflatten(dhead), dhidden, targets, mask)


def _backward(model, residuals, dloss):
    dhead, dhidden, targets, mask = residuals
    dhead = jax.tree.map(lambda d: d if d.dtype == jax.dtypes.float0 else d * dloss, dhead)
    # Multiplied in float32: a loss scale is beyond float16.
    return dhead, (dhidden * dloss).astype(dhidden.dtype), _no_gradient(targets), _no_gradient(mask)


def _no_gradient(integers: Any) -> np.ndarray:
    return np.zeros(integers.shape, jax.dtypes.float0)


_scanned.defvjp(_forward, _backward)


def _chunks(batch_size: int, seq_len: int, vocab_size: int) -> int:
    """The fewest chunks whose logits are small enough on a device, or which are too short to cut."""
    tokens = -(-batch_size // batch_ways()) * seq_len
    smallest = SMALLEST_CHUNK_TOKENS["cpu" if target_platform() == "cpu" else "accelerator"]
    largest = max(LARGEST_CHUNK_BYTES // (4 * vocab_size), smallest)
    return next(n for n in range(1, seq_len + 1) if seq_len % n == 0 and (tokens <= n * largest or n == seq_len))
