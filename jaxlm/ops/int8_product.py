"""Products of int8 arrays summed in int32, by the fastest instructions that the platform has for them.

x86's VPDPBUSD (AVX-512 VNNI, Intel's Software Developer's Manual) multiplies unsigned bytes by signed ones. So there

    x W^T = (x + 128) W^T - 128 sum_i W_i    for x `[..., I]` and W `[O, I]`

and x + 128 is x with its sign bit inverted, read as unsigned. Sums of int32 are exact up to I = 2^31 / (255 * 128),
65,793.
"""

import functools
import importlib.metadata
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import stablehlo
from jax.interpreters import batching, mlir

from jaxlm.ops.machine.cpu import has_vnni, processor_features
from jaxlm.ops.machine.gpu import is_ampere
from jaxlm.ops.machine.routes import Route, faster, measured_once
from jaxlm.ops.machine.user_cache import cache_directory, processor_key
from jaxlm.ops.native.scaled_product import native_scaled_product, scaled_product_route
from jaxlm.ops.shapes import Codes, FeatureScale, Int8Features, Int32Outputs, Outputs
from jaxlm.parallel.sharding import target_platform

# Inverting it turns an int8 into the uint8 that is larger by 128.
_SIGN_BIT = 128
# With fewer rows of x, as in decoding, the sums of the codes cost more than the products gain: unsigned products take
# 1.0 to 7 times as long at 8 to 64 rows, and 0.24 to 0.45 at 2048 (AMD EPYC, 2 cores, 2026-11-28).
_FEWEST_ROWS = 128
# Of both operands when the routes are timed.
_TIMED_SHAPE = (1024, 512)
_unsigned_product = Primitive("unsigned_product")


def scaled_product(x: Int8Features, codes: Codes, scale: FeatureScale, dtype: Any) -> Outputs:
    """Return `(x codes^T) * scale` `[..., O]` in `dtype`, of int8 `[..., I]` and `[O, I]`, float32 scales `[..., 1]`.

    The codes are -1, 0 or 1: there are kernels that others overflow.
    The sums are exact and are scaled in float32, so the result is the same on every platform.
    """
    by_xla = functools.partial(_product_then_scale, dtype=dtype)
    if _is_native(x):
        rows = native_scaled_product(x.reshape(-1, x.shape[-1]), codes, scale.reshape(-1))
        return rows.reshape(*x.shape[:-1], len(codes)).astype(dtype)
    if not _may_have_kernel():
        return by_xla(x, codes, scale)
    return jax.lax.platform_dependent(x, codes, scale, cuda=functools.partial(_by_kernel, dtype=dtype), default=by_xla)


def _float32_by_xla(x: Int8Features, codes: Codes, scale: FeatureScale) -> Outputs:
    return _product_then_scale(x, codes, scale, jnp.float32)


def _product_then_scale(x: Int8Features, codes: Codes, scale: FeatureScale, dtype: Any) -> Outputs:
    return (int8_product(x, codes).astype(jnp.float32) * scale).astype(dtype)


def native_route() -> Route:
    """Return whether the native product is used on this machine's processor, and why."""
    return scaled_product_route(processor_features(), _float32_by_xla)


def _is_native(x: Int8Features) -> bool:
    # With few rows the codes take longer to pack than to multiply. A kernel is opaque to the partitioner of a mesh.
    is_alone = jax.sharding.get_abstract_mesh().size <= 1
    is_large = math.prod(x.shape[:-1]) >= _FEWEST_ROWS
    return is_large and is_alone and target_platform() == "cpu" and native_route().is_used


def _may_have_kernel() -> bool:
    # A kernel is opaque to the partitioner, so a mesh of several devices leaves the product to XLA.
    return is_ampere(jax.devices()[0]) and jax.sharding.get_abstract_mesh().size <= 1


def _by_kernel(x: Int8Features, codes: Codes, scale: FeatureScale, dtype: Any) -> Outputs:
    from jaxlm.ops.gpu_int8_product import fits_tiles, tiled_product  # not every jax has Triton

    rows = x.reshape(-1, x.shape[-1])
    if not fits_tiles(rows, codes):
        return _product_then_scale(x, codes, scale, dtype)
    return tiled_product(rows, codes, scale.reshape(-1), dtype).reshape(*x.shape[:-1], len(codes))


def int8_product(x: Int8Features, codes: Codes) -> Int32Outputs:
    """Return `x codes^T`, int32 `[..., O]`, of int8 `[..., I]` and `[O, I]`; exact, so the same on every platform."""
    if math.prod(x.shape[:-1]) < _FEWEST_ROWS or not _is_unsigned_faster():
        return _signed(x, codes)
    return jax.lax.platform_dependent(x, codes, cpu=_by_unsigned, default=_signed)


def _is_unsigned_faster() -> bool:
    # The processes of a mesh have to agree: they go by the name of the instruction. Other devices have their own route.
    is_measured = jax.sharding.get_abstract_mesh().size <= 1 and target_platform() == "cpu"
    return unsigned_route().is_used if is_measured else has_vnni()


@functools.cache
def unsigned_route() -> Route:
    """Return whether products of bytes are by unsigned ones on this machine's processor, and why.

    The first call on a machine compares both and times them; the times are kept in the user's cache.
    """
    path = cache_directory() / f"int8_product-{processor_key()}-{importlib.metadata.version('jaxlib')}.json"
    try:
        return faster(measured_once(path, _forms), "unsigned", "signed")
    except ArithmeticError as error:
        return Route(False, f"off: {error}")


def _forms() -> dict[str, Callable[[], jax.Array]]:
    """Return calls of both routes. Raises ArithmeticError where their sums differ."""
    rng = np.random.default_rng(0)
    x, codes = (jnp.asarray(rng.integers(*limits, _TIMED_SHAPE), jnp.int8) for limits in ((-128, 128), (-1, 2)))
    unsigned, signed = (functools.partial(jax.jit(route), x, codes) for route in (_by_unsigned, _signed))
    if not np.array_equal(unsigned(), signed()):
        raise ArithmeticError("sums of unsigned bytes differ from those of signed ones on this processor")
    return {"unsigned": unsigned, "signed": signed}


def _signed(x: Int8Features, codes: Codes) -> Int32Outputs:
    contract_last = (((x.ndim - 1,), (1,)), ((), ()))
    return jax.lax.dot_general(x, codes, contract_last, preferred_element_type=jnp.int32)


def _by_unsigned(x: Int8Features, codes: Codes) -> Int32Outputs:
    """Return (x + 128) codes^T - 128 sum_i codes_i."""
    unsigned = jax.lax.bitcast_convert_type(x, jnp.uint8) ^ jnp.uint8(_SIGN_BIT)
    excess = _SIGN_BIT * jnp.sum(codes, axis=1, dtype=jnp.int32)  # [O]
    return _unsigned_product.bind(unsigned, codes) - jnp.expand_dims(excess, range(x.ndim - 1))


@_unsigned_product.def_abstract_eval
def _shape(x, codes):
    return ShapedArray((*x.shape[:-1], codes.shape[0]), jnp.int32)


def _lower(context, x, codes):
    # Lowered to StableHLO directly: jax.lax.dot_general would first widen operands of different types.
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
