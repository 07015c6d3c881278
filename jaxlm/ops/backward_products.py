"""The two products of the backward pass of a linear layer y = x W^T: the gradients of its input and of its weight.

    dx = dy W        [T, O], [O, I] -> [T, I]
    dW = dy^T x      [T, O], [T, I] -> [O, I]

On CPUs XLA multiplies a transposed operand, as dW has one, in float32 whatever its precision is, and not at the full
rate. There a kernel of our own is used where it is faster (`jaxlm.ops.native`).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxlm.common.architecture.ternary import dequantize
from jaxlm.ops.machine.cpu import onednn_options, processor_features
from jaxlm.ops.machine.routes import Route
from jaxlm.ops.native.products import d_features, d_weight, native_products, operand_dtype
from jaxlm.parallel.sharding import target_platform

# Multiplications below which a call of the kernel costs more than it gains.
_FEWEST_PRODUCTS = 2**18
# From this width of hidden states on, oneDNN's float32 products pay: a step of `ternary-25m` takes 0.95 of the time.
_ONEDNN_WIDTH = 512


def native_route() -> Route:
    """Return whether the native products are used on this machine's processor, and why."""
    return native_products(processor_features())


def native_dtype() -> Any:
    """Return the precision of the operands of the native products; None where they are not used."""
    return operand_dtype(processor_features()) if native_route().is_used else None


def step_options(platform: str, dtype: Any, backward_dtype: str | None, hidden_size: int) -> dict[str, Any]:
    """Return the compiler options of a training step of these precisions and a width: those of oneDNN where they pay.

    Where the native products in bfloat16 are used, XLA's own do as well for all others in bfloat16, and in float32 for
    narrow models (`ternary-tiny`: 1.00 of the time). Such a step can be kept for the next start; one with oneDNN
    cannot.
    """
    if platform != "cpu":
        return {}
    precision = jnp.dtype(backward_dtype or dtype)
    is_native = precision == jnp.bfloat16 and _may_be_native(precision)
    is_enough = is_native and (jnp.dtype(dtype) == jnp.bfloat16 or hidden_size < _ONEDNN_WIDTH)
    return {} if is_enough else onednn_options(platform)


def features_gradient(
    dy: Float[jax.Array, "*batch O"], weight: Any, scale: Any = None, dtype: Any = None
) -> Float[jax.Array, "*batch I"]:
    """Return dy W in the precision of dy, of W `[O, I]` in floats, or in codes with scales `[blocks, groups]`.

    Operands are rounded to `dtype`, and products are then summed in float32; None leaves them in the precision of dy.
    """
    precision = jnp.dtype(dtype or dy.dtype)
    if _is_native(dy, weight.shape[1], precision):
        factor = 1.0
        if scale is not None and scale.size == 1:
            factor = scale.reshape(())  # codes are exact in bfloat16
        elif scale is not None:
            weight = dequantize(weight, scale, jnp).astype(precision)
        dx = d_features(_rows(dy.astype(precision)), weight, jnp.float32(factor))
        return dx.reshape(*dy.shape[:-1], -1).astype(dy.dtype)
    if scale is not None:
        weight = dequantize(weight, scale, jnp)
    if precision == dy.dtype:
        return dy @ weight.astype(precision)
    return jnp.matmul(dy.astype(precision), weight.astype(precision), preferred_element_type=dy.dtype)


def weight_gradient(
    dy: Float[jax.Array, "*batch O"], x: Any, scale: Any = None, dtype: Any = None
) -> Float[jax.Array, "O I"]:
    """Return dy^T x~ in float32, of x~ `[..., I]`: x in floats, or in int8 codes divided by scales `[..., 1]`.

    Operands are rounded to `dtype`; None leaves them in the precision of dy.
    """
    precision = jnp.dtype(dtype or dy.dtype)
    if _is_native(dy, x.shape[-1], precision):
        # The codes are exact in bfloat16: the scale is dy's.
        factors = jnp.ones(math.prod(dy.shape[:-1]), jnp.float32) if scale is None else 1 / scale.reshape(-1)
        return d_weight(_rows(dy.astype(precision)), factors, _rows(x))
    if scale is not None:
        x = x / scale
    # Not flattened: a mesh splits rows and tokens, and could not split the two as one.
    tokens = tuple(range(dy.ndim - 1))
    operands, contracted = (dy.astype(precision), x.astype(precision)), ((tokens, tokens), ((), ()))
    return jax.lax.dot_general(*operands, contracted, preferred_element_type=jnp.float32)


def _rows(array: jax.Array) -> jax.Array:
    return array.reshape(-1, array.shape[-1])


def _is_native(dy: jax.Array, inputs: int, precision: Any) -> bool:
    return dy.size * inputs >= _FEWEST_PRODUCTS and target_platform() == "cpu" and _may_be_native(precision)


def _may_be_native(precision: Any) -> bool:
    # A kernel is opaque to the partitioner, so a mesh of several devices leaves the product to XLA.
    is_alone = jax.sharding.get_abstract_mesh().size <= 1
    return is_alone and precision in (jnp.bfloat16, jnp.float32) and precision == native_dtype()
