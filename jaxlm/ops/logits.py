"""The product of the head: hidden states -> logits, by a float matrix or a ternary one."""

import jax.numpy as jnp
from jaxtyping import Float

from jaxlm.ops.shapes import AnyArray, Hidden, Logits
from jaxlm.ops.ternary_linear import TernaryWeight, ternary_linear


def head_logits(
    x: Hidden, weight: Float[AnyArray, "V D"] | TernaryWeight, name: str = "", *, soft_cap: float | None
) -> Logits:
    """Return x W^T `[B, L, V]` in float32, of x `[B, L, D]` and W `[V, D]`, float or ternary.

    With a `soft_cap` c they are c tanh(x W^T / c), so between -c and c (Gemma 2, arXiv 2408.00118). A float product
    multiplies in the precision of x and sums in float32. `name` is the layer's, by which the codes are all-gathered on
    a mesh; without it they stay as they are.
    """
    if isinstance(weight, TernaryWeight):
        logits = ternary_linear(x, weight, name).astype(jnp.float32)
    else:
        logits = jnp.einsum("bld,vd->blv", x, weight.astype(x.dtype), preferred_element_type=jnp.float32)
    return logits if soft_cap is None else soft_cap * jnp.tanh(logits / soft_cap)
