"""The products of products.cc as functions of jax, summed in float32.

Operands are rounded to bfloat16 where the processor has AVX512_BF16, whose AMX multiplies where it has that too; on
others with AVX2 they are multiplied in float32. They are used where the library can be built, its answers are exact,
and products take less time than XLA's, or in float32 not much more (`_ALLOWED`).
"""

import ctypes
import functools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped

from jaxlm.ops.machine.cpu import onednn_options
from jaxlm.ops.machine.routes import Route
from jaxlm.ops.native.build import FLAGS, NoLibraryError, build_library, make_known
from jaxlm.ops.native.library_route import library_route

SOURCE = Path(__file__).with_name("products.cc")
FEATURE = "avx2"
BFLOAT16_FEATURE = "avx512_bf16"
_TARGETS = ("jaxlm_d_weight", "jaxlm_d_features")
# Tokens, outputs and inputs: more than a block of each that is summed, and no multiple of any. Pairs of even rows are
# read where they lie.
_CHECKED_SHAPES = ((531, 1067, 51), (531, 1066, 51))
# Of XLA's time, in float32 without oneDNN. The products took 0.93 to 1.02 of it alone, near enough for noise to decide,
# but a step takes 0.85 of its time with them (AVX2, ternary-tiny and ternary-25m, 2026-11-30).
_ALLOWED = 1.5
# Of the products that are timed.
_TIMED_SHAPES = ((1024, 512, 512), (2048, 256, 256))


def d_weight(
    dy: Float[jax.Array, "T O"], factors: Float[jax.Array, " T"], x: Shaped[jax.Array, "T I"]
) -> Float[jax.Array, "O I"]:
    """Return `(factors dy)^T x`, of x in int8, bfloat16 or float32."""
    shape = jax.ShapeDtypeStruct((dy.shape[1], x.shape[1]), jnp.float32)
    return jax.ffi.ffi_call("jaxlm_d_weight", shape, vmap_method="sequential")(dy, factors, x)


def d_features(
    dy: Float[jax.Array, "T O"], weight: Shaped[jax.Array, "O I"], factor: Float[jax.Array, ""]
) -> Float[jax.Array, "T I"]:
    """Return `factor dy W`, of W in int8, bfloat16 or float32."""
    shape = jax.ShapeDtypeStruct((dy.shape[0], weight.shape[1]), jnp.float32)
    return jax.ffi.ffi_call("jaxlm_d_features", shape, vmap_method="sequential")(dy, weight, factor)


def operand_dtype(processor: Sequence[str]) -> Any:
    """Return the precision in which operands are multiplied on a processor of these features."""
    return jnp.dtype(jnp.bfloat16 if BFLOAT16_FEATURE in processor else jnp.float32)


def flags_for(processor: Sequence[str]) -> tuple[str, ...]:
    """Return the compiler's flags for a processor of these features."""
    return FLAGS if operand_dtype(processor) == jnp.bfloat16 else (*FLAGS, "-DFLOAT_WORDS")


@functools.cache
def native_products(processor: tuple[str, ...]) -> Route:
    """Return whether the products are used on a processor of these features, and why."""
    dtype = operand_dtype(processor)
    allowed = _ALLOWED if dtype == jnp.float32 and not onednn_options("cpu") else 1.0
    load, forms = partial(load_library, processor, flags_for(processor)), partial(_forms, dtype)
    return library_route(processor, FEATURE, load, check_exact, forms, allowed)


def load_library(processor: Sequence[str], flags: Sequence[str]) -> Path:
    """Build the library if need be, make its products known to jax, and return its path. Raises NoLibraryError."""
    path = build_library(SOURCE, processor, flags)
    may_run = make_known(path, _TARGETS).jaxlm_may_run
    may_run.restype = ctypes.c_bool
    if not may_run():
        raise NoLibraryError(f"{path}: the system does not let this process use AMX")
    return path


def check_exact() -> None:
    """Raise NoLibraryError where products of small integers, which are exact in any order, are not those of numpy."""
    for shape in _CHECKED_SHAPES:
        _check_exact(*shape)


def _check_exact(T: int, O: int, I: int) -> None:  # noqa: E741
    rng = np.random.default_rng(0)
    dy, factors = rng.integers(-8, 8, (T, O)).astype(float), 2.0 ** rng.integers(-2, 3, T)
    x, weight = rng.integers(-127, 128, (T, I)), rng.integers(-1, 2, (O, I))
    right = (factors[:, None] * dy).T @ x, 0.5 * dy @ weight
    for dtype in (jnp.float32, jnp.bfloat16):
        gradient = jnp.asarray(dy, dtype)
        for kind in (jnp.int8, jnp.float32, jnp.bfloat16):
            found = (
                jax.jit(d_weight)(gradient, jnp.asarray(factors, jnp.float32), jnp.asarray(x, kind)),
                jax.jit(d_features)(gradient, jnp.asarray(weight, kind), jnp.float32(0.5)),
            )
            if not all(np.array_equal(each, expected) for each, expected in zip(found, right, strict=True)):
                raise NoLibraryError(f"products of {dtype.__name__} and {kind.__name__} are wrong on this processor")


def _forms(dtype: Any) -> dict[str, Callable[[], Any]]:
    """Return calls of the two products of a backward pass, the library's and XLA's, of operands of a precision.

    In float32 XLA multiplies by oneDNN where that is its fastest form.
    """

    def native(dy: Any, codes: Any, x: Any, scales: Any) -> Any:
        return d_features(dy, codes, scales[0, 0]), d_weight(dy, 1 / scales.reshape(-1), x)

    def xla(dy: Any, codes: Any, x: Any, scales: Any) -> Any:
        by_token = (((0,), (0,)), ((), ()))
        weight, x = (codes * scales[0, 0]).astype(dy.dtype), (x / scales).astype(dy.dtype)
        return (
            jnp.matmul(dy, weight, preferred_element_type=jnp.float32),
            jax.lax.dot_general(dy, x, by_token, preferred_element_type=jnp.float32),
        )

    rng = np.random.default_rng(0)
    operands = []
    for T, O, I in _TIMED_SHAPES:  # noqa: E741
        dy = jnp.asarray(rng.standard_normal((T, O)), dtype)
        codes, x = (jnp.asarray(rng.integers(-1, 2, shape), jnp.int8) for shape in ((O, I), (T, I)))
        operands.append((dy, codes, x, jnp.ones((T, 1), jnp.float32)))
    options = onednn_options("cpu") if dtype == jnp.float32 else None
    compiled = {"native": jax.jit(native), "XLA": jax.jit(xla, compiler_options=options)}
    return {name: partial(_each, product, operands) for name, product in compiled.items()}


def _each(product: Callable[..., Any], operands: Sequence[tuple[Any, ...]]) -> list[Any]:
    return [product(*each) for each in operands]
