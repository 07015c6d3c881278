import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.parallel.gathered_codes import all_gather_codes, pack_rows, unpack_rows


@pytest.mark.parametrize("shape", [(4, 1), (8, 5), (64, 33)])
def test_codes_come_back_from_a_quarter_of_their_bytes(shape):
    codes = np.random.default_rng(0).integers(-1, 2, shape).astype(np.int8)
    packed = pack_rows(jnp.asarray(codes))
    assert packed.dtype == jnp.uint8 and packed.nbytes * 4 == codes.nbytes
    np.testing.assert_array_equal(unpack_rows(packed), codes)


def test_a_byte_holds_four_rows_that_lie_side_by_side():
    codes = jnp.array([[-1, 1], [0, 1], [1, 1], [-1, 1]] + [[1, -1]] * 4, jnp.int8)
    np.testing.assert_array_equal(pack_rows(codes), [[0b00100100, 0b10101010], [0b10101010, 0]])


def test_without_a_mesh_codes_stay_as_they_are():
    codes = jnp.zeros((8, 4), jnp.int8)
    assert all_gather_codes(codes, "up_proj") is codes
