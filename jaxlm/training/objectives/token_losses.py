"""Losses of tokens by their logits, in chunks of the sequence, as in jaxlm/ops/cross_entropy.py but of any formula.

The gradient of a chunk is computed while its logits exist: nothing is computed twice, and the backward pass only
multiplies by the gradient that comes from outside.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.ops.cross_entropy import HeadWeight, cut_tokens, join_tokens, number_of_chunks
from jaxlm.ops.logits import head_logits
from jaxlm.ops.shapes import Hidden, Logits
from jaxlm.ops.ternary_linear import TernaryWeight, all_gathered, no_gradient
from jaxlm.parallel.sharding import constrain

# (logits [P, T, V], rows, constants) -> losses [P, T], and further numbers [P, T] by name.
TokenLosses = Callable[[Logits, Any, Any], tuple[jax.Array, dict[str, jax.Array]]]


class _Form(NamedTuple):
    """The settings of the sum; `name` is that of the head's layer."""

    losses: TokenLosses
    chunks: int
    name: str
    soft_cap: float | None


def summed_losses(
    losses: TokenLosses,
    x: Hidden,
    weight: HeadWeight,
    rows: Any,
    constants: Any,
    *,
    chunks: int = 0,
    name: str,
    soft_cap: float | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return the sum of losses over all tokens, and the sums of the further numbers, which have no gradient.

    x `[B, L, D]` and the matrix of the head, of the layer `name`, give the logits. `rows` is a tree of arrays
    `[B, L, ...]`, of which `losses` gets those of a chunk, and `constants` a tree that it gets whole; neither has a
    gradient. `chunks` and `soft_cap` are as in `cross_entropy_sum`.
    """
    form = _Form(losses, number_of_chunks(chunks, x, weight), name, soft_cap)
    return _summed(form, x, weight, *jax.lax.stop_gradient((rows, constants)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _summed(form: _Form, x: Any, weight: Any, rows: Any, constants: Any) -> Any:
    weight = _gathered(weight, form.name)

    def of_chunk(_, chunk):
        x, rows = chunk
        return None, jax.tree.map(jnp.sum, form.losses(head_logits(x, weight, soft_cap=form.soft_cap), rows, constants))

    _, found = jax.lax.scan(of_chunk, None, cut_tokens((x, rows), form.chunks))
    return jax.tree.map(jnp.sum, found)


def _forward(form, x, weight, rows, constants):
    gathered = _gathered(weight, form.name)

    def add(dweight, chunk):
        x, rows = chunk

        def of_chunk(x, trained):
            logits = head_logits(x, _with_trained(gathered, trained), soft_cap=form.soft_cap)
            return jax.tree.map(jnp.sum, form.losses(logits, rows, constants))

        loss, backward, further = jax.vjp(of_chunk, x, _trained(gathered), has_aux=True)
        dx, dtrained = backward(jnp.ones_like(loss))
        return dweight + dtrained.astype(jnp.float32), (dx, loss, further)

    zeros = jnp.zeros(_trained(gathered).shape)
    dweight, (dx, loss, further) = jax.lax.scan(add, zeros, cut_tokens((x, rows), form.chunks))
    residuals = join_tokens(dx, *x.shape[:2]), dweight, weight, rows, constants
    return jax.tree.map(jnp.sum, (loss, further)), residuals


def _backward(form, residuals, cotangents):
    dx, dweight, weight, rows, constants = residuals
    dloss = cotangents[0]
    # Multiplied in float32: a loss scale is beyond float16.
    dx, dtrained = (dx * dloss).astype(dx.dtype), (dweight * dloss).astype(_trained(weight).dtype)
    dweight = dtrained
    if isinstance(weight, TernaryWeight):
        dweight = weight.replace(codes=no_gradient(weight.codes), scale=jnp.zeros_like(weight.scale), latent=dtrained)
    return dx, dweight, *jax.tree.map(_zero_gradient, (rows, constants))


_summed.defvjp(_forward, _backward)


def _gathered(weight: Any, name: str) -> Any:
    """Return the weight all-gathered over the devices that split it, once for all chunks."""
    if isinstance(weight, TernaryWeight):
        return all_gathered(weight, name).replace(latent=weight.latent)
    return constrain(weight, "vocab", None)


def _trained(weight: Any) -> jax.Array:
    """Return the matrix that the gradient of a weight flows to."""
    return weight.latent if isinstance(weight, TernaryWeight) else weight


def _with_trained(weight: Any, trained: jax.Array) -> Any:
    return weight.replace(latent=trained) if isinstance(weight, TernaryWeight) else trained


def _zero_gradient(array: Any) -> Any:
    return jnp.zeros_like(array) if jnp.issubdtype(array.dtype, jnp.floating) else no_gradient(array)
