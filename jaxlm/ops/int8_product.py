"""Products of int8 arrays summed in int32, by the fastest instructions that the platform has for them."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import stablehlo
from jax.interpreters import batching, mlir

from jaxlm.ops.cpu import has_vnni
from jaxlm.ops.gpu import is_ampere

# What turns an int8 into the uint8 that is larger by 128.
_SIGN_BIT = 128
# With fewer rows of x the sums of the codes cost more than the products gain, as when text is generated.
_FEWEST_ROWS = 64
_unsigned_product = Primitive("unsigned_product")


def scaled_product(x: jax.Array, codes: jax.Array, scale: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """`(x codes^T) * scale` in `dtype`, of int8 `[..., I]` and `[O, I]` and float32 scales `[..., 1]`.

    The sums are exact and scaled in float32, so the same on every platform.
    """
    by_xla = functools.partial(_product_then_scale, dtype=dtype)
    if not _may_have_kernel():
        return by_xla(x, codes, scale)
    return jax.lax.platform_dependent(x, codes, scale, cuda=functools.partial(_by_kernel, dtype=dtype), default=by_xla)


def _product_then_scale(x: jax.Array, codes: jax.Array, scale: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    return (int8_product(x, codes).astype(jnp.float32) * scale).astype(dtype)


def _may_have_kernel() -> bool:
    # A kernel is opaque to the partitioner, so a mesh of several devices leaves the product to XLA.
    return is_ampere(jax.devices()[0]) and jax.sharding.get_abstract_mesh().size <= 1


def _by_kernel(x: jax.Array, codes: jax.Array, scale: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    from jaxlm.ops.gpu_int8_product import fits_tiles, tiled_product  # Triton's part of jax is not everywhere

    rows = x.reshape(-1, x.shape[-1])
    if not fits_tiles(rows, codes):
        return _product_then_scale(x, codes, scale, dtype)
    return tiled_product(rows, codes, scale.reshape(-1), dtype).reshape(*x.shape[:-1], len(codes))


def int8_product(x: jax.Array, codes: jax.Array) -> jax.Array:
    """`x codes^T` of int8 `[..., I]` and int8 `[O, I]`, int32 `[..., O]`; exact, so the same on every platform."""
    if not has_vnni() or math.prod(x.shape[:-1]) < _FEWEST_ROWS:
        return _signed(x, codes)
    return jax.lax.platform_dependent(x, codes, cpu=_by_unsigned, default=_signed)


def _signed(x: jax.Array, codes: jax.Array) -> jax.Array:
    contract_last = (((x.ndim - 1,), (1,)), ((), ()))
    return jax.lax.dot_general(x, codes, contract_last, preferred_element_type=jnp.int32)


def _by_unsigned(x: jax.Array, codes: jax.Array) -> jax.Array:
    """(x + 128) codes^T - 128 sum(codes): x86 multiplies unsigned bytes by signed ones."""
    unsigned = jax.lax.bitcast_convert_type(x, jnp.uint8) ^ jnp.uint8(_SIGN_BIT)
    excess = _SIGN_BIT * jnp.sum(codes, axis=1, dtype=jnp.int32)
    return _unsigned_product.bind(unsigned, codes) - jnp.expand_dims(excess, range(x.ndim - 1))


@_unsigned_product.def_abstract_eval
def _shape(x, codes):
    return ShapedArray((*x.shape[:-1], codes.shape[0]), jnp.int32)


def _lower(context, x, codes):
    # As stablehlo: jax.lax.dot_general would widen operands of different types first.
    shape = context.avals_out[0].shape
    dimensions = stablehlo.DotDimensionNumbers.get([], [], [len(shape) - 1], [1])
    kind = ir.RankedTensorType.get(shape, ir.IntegerType.get_signless(32))
    return [stablehlo.dot_general(kind, x, codes, dimensions)]


def _batch(operands, axes):
    (x, codes), (axis, of_codes) = operands, axes
    if of_codes is None:
        return _unsigned_product.bind(jnp.moveaxis(x, axis, 0), codes), 0
    codes = jnp.moveaxis(codes, of_codes, 0)
    x = jnp.broadcast_to(x, (len(codes), *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
    return jax.lax.map(lambda pair: _unsigned_product.bind(*pair), (x, codes)), 0


_unsigned_product.def_impl(jax.jit(_unsigned_product.bind))
mlir.register_lowering(_unsigned_product, _lower)
batching.primitive_batchers[_unsigned_product] = _batch
