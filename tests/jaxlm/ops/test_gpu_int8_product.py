import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.ops.gpu_int8_product import fits_tiles, tiled_product


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_tiles_make_up_the_product(dtype):
    rng = np.random.default_rng(0)
    x = rng.integers(-127, 128, (256, 384)).astype(np.int8)
    codes = rng.integers(-1, 2, (128, 384)).astype(np.int8)
    scale = rng.uniform(0.1, 2, 256).astype(np.float32)
    assert fits_tiles(x, codes)
    found = tiled_product(x, codes, scale, dtype, interpret=True)
    products = (x.astype(np.int32) @ codes.T.astype(np.int32)).astype(np.float32)
    np.testing.assert_array_equal(found, jnp.asarray(products * scale[:, None]).astype(dtype))


@pytest.mark.parametrize("shape", [(255, 128, 128), (256, 100, 128), (256, 128, 4)])
def test_operands_that_do_not_divide_into_tiles_do_not_fit(shape):
    rows, depth, outputs = shape
    assert not fits_tiles(jnp.zeros((rows, depth), jnp.int8), jnp.zeros((outputs, depth), jnp.int8))
