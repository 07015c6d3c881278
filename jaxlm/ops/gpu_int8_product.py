"""The scaled product of int8 arrays as one kernel for NVIDIA's GPUs, in Pallas on Triton.

y_mo = scale_m sum_i x_mi codes_oi. One program computes a tile of y, `[TILE, TILE]`, from TILE rows of x and TILE of
the codes. XLA writes the sums to memory before anything scales them; here they never leave a multiprocessor.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

# Rows, columns and depth of the tiles that a program multiplies at a time, and the number of tiles loaded ahead.
TILE = 128
_STAGES = 3
_WARPS = 4


def fits_tiles(x: jax.Array, codes: jax.Array) -> bool:
    """Return True if operands `[M, I]` and `[O, I]` divide into whole tiles."""
    return not any(size % TILE for size in (*x.shape, *codes.shape))


def tiled_product(
    x: jax.Array, codes: jax.Array, scale: jax.Array, dtype: jax.typing.DTypeLike, *, interpret: bool = False
) -> jax.Array:
    """Return `(x codes^T) * scale` `[M, O]` in `dtype`, of int8 `[M, I]` and `[O, I]` and float32 scales `[M]`.

    M, O and I are multiples of TILE. `interpret` runs the kernel's steps one by one on any device.
    """
    (rows, depth), outputs = x.shape, codes.shape[0]
    return pl.pallas_call(
        _multiply_tile,
        out_shape=jax.ShapeDtypeStruct((rows, outputs), dtype),
        # Programs next to each other share rows of x; together they read all codes, which the GPU's cache holds.
        grid=(outputs // TILE, rows // TILE),
        in_specs=[
            pl.BlockSpec((TILE, depth), lambda column, row: (row, 0)),
            pl.BlockSpec((TILE, depth), lambda column, row: (column, 0)),
            pl.BlockSpec((TILE,), lambda column, row: (row,)),
        ],
        out_specs=pl.BlockSpec((TILE, TILE), lambda column, row: (row, column)),
        compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=_STAGES),
        interpret=interpret,
        name="int8_product",
    )(x, codes, scale)


def _multiply_tile(x, codes, scale, y):
    # x [TILE, I], codes [TILE, I], scale [TILE], y [TILE, TILE]; sums over I, TILE of it at a time.
    contract_last = (((1,), (1,)), ((), ()))

    def add_depth(index, sums):
        depth = pl.ds(index * TILE, TILE)
        return sums + jax.lax.dot_general(x[:, depth], codes[:, depth], contract_last, preferred_element_type=jnp.int32)

    sums = jax.lax.fori_loop(0, x.shape[1] // TILE, add_depth, jnp.zeros(y.shape, jnp.int32))
    y[...] = (sums.astype(jnp.float32) * scale[...][:, None]).astype(y.dtype)
