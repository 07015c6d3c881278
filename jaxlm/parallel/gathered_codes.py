"""Ternary codes all-gathered over a mesh in two bits each."""

import jax
import jax.numpy as jnp

from jaxlm.common.architecture.packing import CODES_PER_BYTE
from jaxlm.parallel.sharding import all_gather, constrain_matrix, is_split_alike


def all_gather_codes(codes: jax.Array, name: str) -> jax.Array:
    """Return the codes `[O, I]` of the linear layer `name`, all-gathered where a mesh splits them.

    Four rows travel as one row of bytes where the mesh splits the bytes as it splits the codes, else a code as a byte.
    """
    rows, columns = codes.shape
    bytes_shape = (rows // CODES_PER_BYTE, columns)
    if rows % CODES_PER_BYTE or not is_split_alike(name, codes.shape, bytes_shape):
        return all_gather(codes, name)
    return unpack_rows(all_gather(constrain_matrix(pack_rows(codes), name), name))


def pack_rows(codes: jax.Array) -> jax.Array:
    """Return codes `[4 R, I]` as uint8 `[R, I]`: bits 2i and 2i + 1 of a byte of row r hold `code + 1` of row 4r + i.

    Rows of one byte lie side by side, unlike in a packed file, so that each device packs its own.
    """
    planes = (codes + 1).astype(jnp.uint8).reshape(-1, CODES_PER_BYTE, codes.shape[1])
    return jnp.sum(planes << _shifts(), axis=1, dtype=jnp.uint8)


def unpack_rows(packed: jax.Array) -> jax.Array:
    """Return the int8 codes `[4 R, I]` that `pack_rows` packed as `[R, I]`."""
    planes = (packed[:, None] >> _shifts()) & 3
    return planes.reshape(-1, packed.shape[1]).astype(jnp.int8) - 1


def _shifts() -> jax.Array:
    """Return the lowest bit of each row of a byte, `[1, 4, 1]`."""
    return 2 * jnp.arange(CODES_PER_BYTE, dtype=jnp.uint8)[None, :, None]
