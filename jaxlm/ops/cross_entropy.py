"""Cross-entropy over the vocabulary, in chunks of the sequence: the logits of all tokens never exist.

For T tokens with inputs x `[T, D]` of the head, its matrix W `[V, D]`, targets y `[T]` and loss mask m `[T]`:

    l = x W^T                                               [T, V]
    z = l, or c tanh(l / c) with a soft cap c               logits [T, V]
    s_t = log sum_v exp(z_tv)                               [T]
    nats = sum_t m_t (s_t - z_t,y(t) + w s_t^2)             w: weight of the z-loss
    dz = m (softmax(z) (1 + 2 w s) - onehot(y))             d nats / dz [T, V]
    dl = dz, or dz (1 - (z / c)^2)                          [T, V]
    dx = dl W,  dW = dl^T x                                 [T, D] and [V, D]

The z-loss keeps s near 0, so that logits stay small (PaLM, arXiv 2204.02311, section 5).

The gradient of a chunk is computed while its logits exist (as in Liger Kernel, arXiv 2410.10989): nothing is computed
twice, and the backward pass only multiplies by the gradient that comes from outside. Where the nats of each token are
wanted, that gradient is a weight per token in the place of m, and the backward pass computes the logits once more.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from jaxlm.ops.backward_products import features_gradient, weight_gradient
from jaxlm.ops.logits import head_logits
from jaxlm.ops.shapes import AnyArray, Hidden, LossMask, Tokens
from jaxlm.ops.ternary_linear import TernaryWeight, all_gathered, dequantized_features, no_gradient, quantize_features
from jaxlm.parallel.sharding import constrain, parts_of, target_platform

# Largest size of the float32 logits of a chunk on a CPU: they should stay in its cache.
LARGEST_CHUNK_BYTES = 16 * 2**20
# Each chunk adds to the whole gradient of the head, which takes an accelerator as long as the work on some 300 tokens.
SMALLEST_CHUNK_TOKENS = {"cpu": 512, "accelerator": 2048}
HeadWeight = Float[AnyArray, "V D"] | TernaryWeight


class _Form(NamedTuple):
    """The settings of the loss; `name` is that of the head's layer."""

    chunks: int
    name: str
    soft_cap: float | None
    z_loss: float
    backward_dtype: str | None = None


def cross_entropy_sum(
    x: Hidden,
    weight: HeadWeight,
    targets: Tokens,
    mask: LossMask,
    *,
    chunks: int = 0,
    name: str,
    soft_cap: float | None = None,
    z_loss: float = 0.0,
    backward_dtype: str | None = None,
) -> tuple[Float[jax.Array, ""], Int[jax.Array, ""]]:
    """Return the cross-entropy in nats, summed over the tokens of the mask, and the number of these tokens.

    x is `[B, L, D]`, targets and mask `[B, L]`; W `[V, D]` is a float matrix or a ternary one, of the layer `name`.
    `chunks` cuts the sequence: 0 takes as few as keep the logits of one small, 1 computes all at once. `soft_cap` is
    that of the logits, and `z_loss` the weight of the squared log of their normalizer, which the sum then includes.
    The operands of the gradients' products are rounded to `backward_dtype`; None is the precision of x. Raises
    ValueError where `chunks` does not divide L.
    """
    form = _Form(number_of_chunks(chunks, x, weight), name, soft_cap, z_loss, backward_dtype)
    return _nats(form, x, weight, targets, mask), jnp.sum(mask)


def token_cross_entropy(
    x: Hidden, weight: HeadWeight, targets: Tokens, *, chunks: int = 0, name: str, soft_cap: float | None = None
) -> Float[jax.Array, "B L"]:
    """Return the cross-entropy of each token in nats, `[B, L]`; arguments and errors are those of `cross_entropy_sum`.

    It costs one more product of the head than the sum does.
    """
    return _each_nats(_Form(number_of_chunks(chunks, x, weight), name, soft_cap, 0.0), x, weight, targets)


def number_of_chunks(chunks: int, x: Hidden, weight: HeadWeight) -> int:
    """Return the number of chunks that a setting means. Raises ValueError where it does not divide the sequence."""
    B, L, _ = x.shape
    chunks = chunks or _fewest_chunks(B, L, vocab_size=_shape(weight)[0])
    if (L // parts_of("length")) % chunks:
        split = "" if (parts := parts_of("length")) == 1 else f" / mesh.sequence {parts}"
        raise ValueError(f"loss_chunks: found {chunks}, expected a divisor of seq_len {L}{split}")
    return chunks


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _each_nats(form: _Form, x: Any, weight: Any, targets: Any) -> jax.Array:
    rows, weight = cut_tokens((x, targets), form.chunks), all_gathered_head(weight, form.name, x.dtype)

    def of_chunk(carry, chunk):
        x, targets = chunk
        return carry, _token_nats(head_logits(x, weight, soft_cap=form.soft_cap), targets)[0]

    return join_tokens(jax.lax.scan(of_chunk, None, rows)[1], *targets.shape)[..., 0]


def _each_forward(form, x, weight, targets):
    return _each_nats(form, x, weight, targets), (x, weight, targets)


def _each_backward(form, residuals, dnats):
    x, weight, targets = residuals
    # In the place of the mask, at most 1: a loss scale is beyond float16.
    largest = jnp.max(jnp.abs(dnats))
    largest = jnp.where(largest > 0, largest, 1)
    _, found = _forward(form, x, weight, targets, dnats / largest)
    return *_backward(form, found, largest)[:2], no_gradient(targets)


_each_nats.defvjp(_each_forward, _each_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _nats(form: _Form, x: Any, weight: Any, targets: Any, mask: Any) -> jax.Array:
    rows, weight = cut_tokens((x, targets, mask), form.chunks), all_gathered_head(weight, form.name, x.dtype)

    def add(nats, chunk):
        x, targets, mask = chunk
        logits = head_logits(x, weight, soft_cap=form.soft_cap)
        return nats + _chunk_nats(logits, targets, mask, form.z_loss)[0], None

    return jnp.sum(jax.lax.scan(add, _zeros(rows), rows)[0])


@jax.named_scope("loss")
def _forward(form, x, weight, targets, mask):
    rows, gathered = cut_tokens((x, targets, mask), form.chunks), all_gathered_head(weight, form.name, x.dtype)
    V, D = _shape(weight)

    def add(sums, chunk):
        nats, dweight = sums  # [P], [P, V, D]
        x, targets, mask = chunk  # [P, T, D], [P, T], [P, T]
        logits = head_logits(x, gathered, soft_cap=form.soft_cap)  # [P, T, V]
        chunk_nats, log_sums = _chunk_nats(logits, targets, mask, form.z_loss)
        is_target = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2) == targets[..., None]
        x, matrix = _dequantized(x, gathered)
        softmax = jnp.exp(logits - log_sums)
        if form.z_loss:
            softmax = softmax * (1 + 2 * form.z_loss * log_sums)
        dlogits = (softmax - is_target) * mask[..., None]
        if form.soft_cap is not None:
            dlogits = dlogits * (1 - jnp.square(logits / form.soft_cap))
        dlogits = dlogits.astype(x.dtype)
        if len(dlogits) == 1:  # one device
            dx = features_gradient(dlogits[0], matrix, dtype=form.backward_dtype)[None]
            dweight += weight_gradient(dlogits[0], x[0], dtype=form.backward_dtype)[None]
        else:
            dx = jnp.einsum("ptv,vd->ptd", dlogits, matrix)
            dweight += jnp.einsum("ptv,ptd->pvd", dlogits, x, preferred_element_type=jnp.float32)
        return (nats + chunk_nats, dweight), dx

    (nats, dweight), dx = jax.lax.scan(add, (_zeros(rows), _zeros(rows, V, D)), rows)
    return jnp.sum(nats), (join_tokens(dx, *targets.shape), jnp.sum(dweight, axis=0), weight, targets, mask)


@jax.named_scope("loss")
def _backward(form, residuals, dnats):
    dx, dweight, weight, targets, mask = residuals
    # Multiplied in float32: a loss scale is beyond float16.
    dx, dweight = (dx * dnats).astype(dx.dtype), dweight * dnats
    if isinstance(weight, TernaryWeight):
        latent = None if weight.latent is None else dweight.astype(weight.latent.dtype)
        zeros = {"codes": no_gradient(weight.codes), "scale": jnp.zeros_like(weight.scale)}
        dweight = weight.replace(**zeros, latent=latent)
    else:
        dweight = dweight.astype(weight.dtype)
    return dx, dweight, no_gradient(targets), no_gradient(mask)


_nats.defvjp(_forward, _backward)


def _chunk_nats(logits: Any, targets: Any, mask: Any, z_loss: float) -> tuple[jax.Array, jax.Array]:
    """Return the summed nats `[P]` of logits `[P, T, V]`, and log sum_v exp(z) `[P, T, 1]`."""
    nats, log_sums = _token_nats(logits, targets)
    if z_loss:
        nats = nats + z_loss * jnp.square(log_sums)
    return jnp.sum(nats[..., 0] * mask, axis=-1), log_sums


def _token_nats(logits: Any, targets: Any) -> tuple[jax.Array, jax.Array]:
    """Return the nats `[P, T, 1]` of logits `[P, T, V]`, and log sum_v exp(z) `[P, T, 1]`."""
    log_sums = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    return log_sums - jnp.take_along_axis(logits, targets[..., None], axis=-1), log_sums


def _shape(weight: Any) -> tuple[int, ...]:
    return (weight.codes if isinstance(weight, TernaryWeight) else weight).shape


def all_gathered_head(weight: Any, name: str, dtype: Any) -> Any:
    """Return the weight all-gathered over the devices that split it, floats in the precision of x.

    This is done once for all chunks: inside their loop, XLA for CPUs would repeat it for each.
    """
    if isinstance(weight, TernaryWeight):
        return all_gathered(weight, name)
    return constrain(weight.astype(dtype), "vocab", None)


def _dequantized(x: Any, weight: Any) -> tuple[Any, Any]:
    """Return the operands of the gradients' products: straight-through, those of a ternary head are dequantized."""
    if not isinstance(weight, TernaryWeight):
        return x, weight
    features = quantize_features(x) if weight.activation_bits else x
    return dequantized_features(features, x.dtype), weight.dequantized(x.dtype)


def cut_tokens(rows: Any, chunks: int) -> Any:
    """Return arrays `[B, L, ...]` as `[chunks, P, T, ...]`: chunks of T tokens on each of P devices that split them.

    Each device sums up its own nats and dW, so that they are reduced once and not once per chunk.
    """

    def cut(array: Any) -> jax.Array:
        B, L, *rest = array.shape
        R, S = _parts(B)
        array = array.reshape(R, B // R, S, chunks, L // (S * chunks), *rest)
        array = jnp.moveaxis(array, (3, 2), (0, 2)).reshape(chunks, R * S, -1, *rest)
        return constrain(array, None, "tokens", *[None] * (array.ndim - 2))

    return jax.tree.map(cut, rows)


def join_tokens(array: jax.Array, B: int, L: int) -> jax.Array:
    """Return `[chunks, P, T, D]` as `[B, L, D]`."""
    chunks, _, _, D = array.shape
    R, S = _parts(B)
    array = jnp.moveaxis(array.reshape(chunks, R, S, B // R, L // (S * chunks), D), (0, 2), (3, 2))
    return constrain(array.reshape(B, L, D), "batch", "length", None)


def _parts(B: int) -> tuple[int, int]:
    """Return the parts that a mesh splits B rows into, and those of each row."""
    rows = parts_of("batch")
    return rows if B % rows == 0 else 1, parts_of("length")


def _zeros(rows: Any, *shape: int) -> jax.Array:
    """Return one sum for each of the P devices, `[P, *shape]`, before the first chunk."""
    P = jax.tree.leaves(rows)[0].shape[1]
    return constrain(jnp.zeros((P, *shape)), "tokens", *[None] * len(shape))


def _fewest_chunks(batch_size: int, seq_len: int, vocab_size: int) -> int:
    """Return the fewest chunks whose logits are small enough on a device, or which are too short to cut."""
    seq_len //= parts_of("length")
    tokens = -(-batch_size // parts_of("batch")) * seq_len
    smallest = SMALLEST_CHUNK_TOKENS["cpu" if target_platform() == "cpu" else "accelerator"]
    largest = max(LARGEST_CHUNK_BYTES // (4 * vocab_size), smallest)
    return next(n for n in range(1, seq_len + 1) if seq_len % n == 0 and (tokens <= n * largest or n == seq_len))
