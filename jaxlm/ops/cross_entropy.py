"""Cross-entropy over the vocabulary, in chunks of the sequence: the logits of all tokens never exist.

With logits z = x W^T, the loss of a token is log sum_v exp(z_v) - z_target. The gradient of a chunk is taken while its
logits exist (as Liger Kernel does, arXiv 2410.10989): nothing is computed twice, and the backward pass only multiplies
by the gradient that comes from outside.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.ops.logits import head_logits
from jaxlm.ops.shapes import Hidden, LossMask, Tokens
from jaxlm.ops.ternary_linear import TernaryWeight
from jaxlm.parallel.sharding import all_gather_codes, constrain, data_parallel_size, target_platform

# Largest size of the float32 logits of a chunk on a CPU: they should stay in its cache.
LARGEST_CHUNK_BYTES = 16 * 2**20
# Each chunk adds to the whole gradient of the head, which takes an accelerator as long as the work on some 300 tokens.
SMALLEST_CHUNK_TOKENS = {"cpu": 512, "accelerator": 2048}
# Which part of a weight has a gradient: a float matrix is all trained; of a ternary one the latent weights are, and the
# rest is constant.
Trained = jax.Array | None
Constant = TernaryWeight | None


def cross_entropy_sum(
    x: Hidden, weight: jax.Array | TernaryWeight, targets: Tokens, mask: LossMask, *, chunks: int = 0, name: str
) -> jax.Array:
    """Return the summed cross-entropy in nats of targets `[B, L]` under x W^T, over the tokens of the mask.

    x is `[B, L, D]`; W `[V, D]` is a float matrix or a ternary one, of the layer `name`. `chunks` cuts the sequence: 0
    takes as few as keep the logits of one small, 1 computes all at once. Raises ValueError where it does not divide L.
    """
    B, L, _ = x.shape
    rows = len(weight.codes if isinstance(weight, TernaryWeight) else weight)
    chunks = chunks or _fewest_chunks(B, L, vocab_size=rows)
    if L % chunks:
        raise ValueError(f"loss_chunks: found {chunks}, expected a divisor of seq_len {L}")
    if chunks == 1:
        return _nats(x, weight, targets, mask, name)

    def cut(array: Any) -> Any:  # [B, L, ...] -> [chunks, B, L / chunks, ...]
        return jnp.moveaxis(array.reshape(B, chunks, L // chunks, *array.shape[2:]), 1, 0)

    trained, constant = _split(weight)
    return _chunked_nats(name, trained, constant, cut(x), cut(targets), cut(mask))


def _nats(x: Any, weight: Any, targets: Any, mask: Any, name: str) -> jax.Array:
    logits = head_logits(x, weight, name)
    return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(logits, targets) * mask)


def _split(weight: jax.Array | TernaryWeight) -> tuple[Trained, Constant]:
    if isinstance(weight, TernaryWeight):
        return weight.latent, weight.replace(latent=None)
    return weight, None


def _join(trained: Trained, constant: Constant) -> Any:
    return trained if constant is None else constant.replace(latent=trained)


def _gathered(name: str, trained: Trained, constant: Constant, dtype: Any) -> tuple[Trained, Constant]:
    """Return the weight all-gathered along `fsdp`, floats in the precision of x.

    This is done once for all chunks: inside their loop, XLA for CPUs would repeat it for each.
    """
    if constant is not None:
        return trained, constant.replace(codes=all_gather_codes(constant.codes, name))
    assert trained is not None
    return constrain(trained.astype(dtype), "vocab", None), None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked_nats(
    name: str, trained: Trained, constant: Constant, x: jax.Array, targets: jax.Array, mask: jax.Array
) -> jax.Array:
    """Return the summed nats of chunks `[chunks, B, L / chunks, ...]`."""
    weight = _join(*_gathered(name, trained, constant, x.dtype))

    def add(total, chunk):
        x, targets, mask = chunk
        return total + _nats(x, weight, targets, mask, name), None

    return jax.lax.scan(add, jnp.zeros(()), (x, targets, mask))[0]


def _forward(name, trained, constant, x, targets, mask):
    """Return the summed nats, and their gradients as residuals.

    Devices that share the batch sum up apart, so that the gradient of the head is reduced once, not once per chunk.
    """
    narrow, constant_all = _gathered(name, trained, constant, x.dtype)
    _, B, _, D = x.shape
    ways = data_parallel_size() if B % data_parallel_size() == 0 else 1

    def nats_of(trained, x, targets, mask):
        return _nats(x, _join(trained, constant_all), targets, mask, name)

    gradient = jax.vmap(jax.value_and_grad(nats_of, argnums=(0, 1)), in_axes=(None, 0, 0, 0))

    def apart(rows):  # [B, L / chunks, ...] -> [ways, B / ways, L / chunks, ...]
        return constrain(rows.reshape(ways, B // ways, *rows.shape[1:]), "batch", *[None] * rows.ndim)

    def add(totals, chunk):
        wide = None if narrow is None else narrow.astype(trained.dtype)  # its gradient is as wide as the parameter
        nats, (dweight, dx) = gradient(wide, *map(apart, chunk))
        return jax.tree.map(jnp.add, totals, (nats, dweight)), dx.reshape(B, -1, D)

    zero_nats = constrain(jnp.zeros(ways), "batch")
    zero_weight = None if trained is None else constrain(jnp.zeros((ways, *trained.shape), trained.dtype), "batch")
    (nats, dweight), dx = jax.lax.scan(add, (zero_nats, zero_weight), (x, targets, mask))
    dweight = None if dweight is None else jnp.sum(dweight, axis=0)
    return jnp.sum(nats), (dweight, dx, constant, targets, mask)


def _backward(name, residuals, dnats):
    dweight, dx, constant, targets, mask = residuals
    dweight = None if dweight is None else dweight * dnats
    # Multiplied in float32: a loss scale is beyond float16.
    dx = (dx * dnats).astype(dx.dtype)
    return dweight, jax.tree.map(_no_gradient, constant), dx, _no_gradient(targets), _no_gradient(mask)


def _no_gradient(array: Any) -> Any:
    if jnp.issubdtype(array.dtype, jnp.inexact):
        return jnp.zeros_like(array)
    return np.zeros(array.shape, jax.dtypes.float0)


_chunked_nats.defvjp(_forward, _backward)


def _fewest_chunks(batch_size: int, seq_len: int, vocab_size: int) -> int:
    """Return the fewest chunks whose logits are small enough on a device, or which are too short to cut."""
    tokens = -(-batch_size // data_parallel_size()) * seq_len
    smallest = SMALLEST_CHUNK_TOKENS["cpu" if target_platform() == "cpu" else "accelerator"]
    largest = max(LARGEST_CHUNK_BYTES // (4 * vocab_size), smallest)
    return next(n for n in range(1, seq_len + 1) if seq_len % n == 0 and (tokens <= n * largest or n == seq_len))
