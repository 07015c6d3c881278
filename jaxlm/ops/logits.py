"""The product of the head: hidden states -> logits, by a float matrix or a ternary one."""

import jax
import jax.numpy as jnp

from jaxlm.ops.shapes import Features, Hidden, Logits
from jaxlm.ops.ternary_linear import TernaryWeight, quantize_features, ternary_linear


def head_logits(x: Hidden, weight: jax.Array | TernaryWeight, name: str = "lm_head") -> Logits:
    """Return x W^T `[B, L, V]` in float32, of x `[B, L, D]` and W `[V, D]`, float or ternary.

    `name` is the layer's, by which the codes are all-gathered on a mesh.
    """
    if isinstance(weight, TernaryWeight):
        return ternary_linear(quantize_features(x, f"{name}_input"), weight, name).astype(jnp.float32)
    return logits_product(x, weight)


@jax.custom_vjp
def logits_product(x: Hidden, weight: Features) -> Logits:
    """Return x W^T in float32, for x in any precision and W `[V, D]` in float32.

    All three products of both passes multiply in the precision of x and sum in float32. Without this, the backward pass
    would multiply in float32, because logits are float32.
    """
    return _forward(x, weight)[0]


def _forward(x, weight):
    y = jnp.einsum("bld,vd->blv", x, weight.astype(x.dtype), preferred_element_type=jnp.float32)
    return y, (x, weight)


def _backward(residuals, dy):
    # With y = x W^T: dx = dy W, dW = dy^T x.
    x, weight = residuals
    dy = dy.astype(x.dtype)
    dx = jnp.einsum("blv,vd->bld", dy, weight.astype(x.dtype))
    # One axis of tokens: with two, XLA for CPUs would write dy once more, transposed.
    dy_TV, x_TD = dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1])
    return dx, jnp.einsum("tv,td->vd", dy_TV, x_TD, preferred_element_type=jnp.float32).astype(weight.dtype)


logits_product.defvjp(_forward, _backward)
