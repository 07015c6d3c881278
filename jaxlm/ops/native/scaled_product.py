"""The product of scaled_product.cc as a function of jax: int8 features and ternary codes, summed exactly and scaled.

It is used on processors with AVX2 and no AVX-512 VNNI, where the library can be built, its answers are those of numpy,
and it takes less time than XLA's product.
"""

import functools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int8

from jaxlm.ops.machine.routes import Route
from jaxlm.ops.native.build import FLAGS, NoLibraryError, build_library, make_known
from jaxlm.ops.native.library_route import library_route

SOURCE = Path(__file__).with_name("scaled_product.cc")
FEATURE = "avx2"
# With it XLA multiplies bytes as fast as floats are added: three times the rate of AVX2.
FASTER_FEATURE = "avx512_vnni"
# Tokens, outputs and inputs: more than a block of inputs, and no multiple of any.
_CHECKED_SHAPE = (131, 67, 515)
# Of the product that is timed.
_TIMED_SHAPE = (1024, 512, 512)


def native_scaled_product(
    x: Int8[jax.Array, "T I"], codes: Int8[jax.Array, "O I"], scale: Float[jax.Array, " T"]
) -> Float[jax.Array, "T O"]:
    """Return `(x codes^T) * scale` in float32, of codes in {-1, 0, 1}; of others it may overflow."""
    shape = jax.ShapeDtypeStruct((x.shape[0], codes.shape[0]), jnp.float32)
    return jax.ffi.ffi_call("jaxlm_scaled_product", shape, vmap_method="sequential")(x, codes, scale)


@functools.cache
def scaled_product_route(processor: tuple[str, ...], by_xla: Callable[..., jax.Array]) -> Route:
    """Return whether the product is used on a processor of these features in the place of `by_xla`, and why."""
    if FASTER_FEATURE in processor:
        return Route(False, f"off: the processor has {FASTER_FEATURE}")
    return library_route(processor, FEATURE, partial(load_library, processor), check_exact, partial(_forms, by_xla))


def load_library(processor: Sequence[str], flags: Sequence[str] = FLAGS) -> Path:
    """Build the library if need be, make its product known to jax, and return its path. Raises NoLibraryError."""
    path = build_library(SOURCE, processor, flags)
    make_known(path, ["jaxlm_scaled_product"])
    return path


def check_exact() -> None:
    """Raise NoLibraryError where sums are not those of numpy: of random numbers, and of the largest and smallest."""
    rng = np.random.default_rng(0)
    T, O, I = _CHECKED_SHAPE  # noqa: E741
    x, codes = rng.integers(-128, 128, (T, I)), rng.integers(-1, 2, (O, I))
    x[0], x[1], codes[0], codes[1] = 127, -128, 1, -1
    scale = rng.uniform(0.5, 2, T).astype(np.float32)
    right = (x @ codes.T).astype(np.float32) * scale[:, None]
    operands = jnp.asarray(x, jnp.int8), jnp.asarray(codes, jnp.int8), jnp.asarray(scale)
    if not np.array_equal(jax.jit(native_scaled_product)(*operands), right):
        raise NoLibraryError("products of int8 and codes are wrong on this processor")


def _forms(by_xla: Callable[..., jax.Array]) -> dict[str, Callable[[], Any]]:
    """Return calls of the library's product and of XLA's."""
    rng = np.random.default_rng(0)
    T, O, I = _TIMED_SHAPE  # noqa: E741
    x, codes = (jnp.asarray(rng.integers(-1, 2, shape), jnp.int8) for shape in ((T, I), (O, I)))
    scale = jnp.ones(T, jnp.float32)
    return {
        "native": partial(jax.jit(native_scaled_product), x, codes, scale),
        "XLA": partial(jax.jit(by_xla), x, codes, scale[:, None]),
    }
