import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlm.ops.tiled_attention
from jaxlm.ops.attention import reference_attention
from jaxlm.ops.tiled_attention import tiled_attention
from tests.jaxlm.ops.attention_inputs import inputs


@pytest.mark.parametrize("segmented", [False, True])
@pytest.mark.parametrize("length", [1, 4, 7, 31, 70])
def test_tiles_equal_the_reference_in_value_and_gradient(monkeypatch, length, segmented):
    monkeypatch.setattr(jaxlm.ops.tiled_attention, "TILE_SIZE", 4)
    segment_ids = np.cumsum(np.arange(length) % 5 == 4)[None].repeat(2, axis=0) if segmented else None
    arguments = inputs(length)
    weights = jnp.asarray(np.random.default_rng(1).standard_normal(arguments[0].shape), jnp.float32)

    def value_and_gradient(attention):
        def weighted(*arguments):
            return jnp.sum(attention(*arguments, segment_ids) * weights)

        return jax.jit(jax.value_and_grad(weighted, argnums=(0, 1, 2)))(*arguments)

    found, expected = value_and_gradient(tiled_attention), value_and_gradient(reference_attention)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), found, expected)


def test_memory_grows_with_the_tiles_and_not_with_the_square():
    def temporaries(length):
        arguments = [jax.ShapeDtypeStruct((1, length, heads, 8), jnp.float32) for heads in (4, 2, 2)]
        gradient = jax.grad(lambda *a: jnp.sum(tiled_attention(*a, None)), argnums=(0, 1, 2))
        return jax.jit(gradient).lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    # Of 2048 x 2048 scores in float32 and 4 heads, 64 MiB, a few tiles exist at a time.
    assert temporaries(2048) < 4 * 4 * 2048**2 / 2.5
    assert temporaries(2048) < 2.1 * temporaries(1024)
    assert temporaries(4096) < 2.1 * temporaries(2048)


@pytest.mark.parametrize("length", [200, 2000])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_gradients_in_sixteen_bits_are_those_of_float32_rounded(dtype, length):
    arguments = inputs(length)
    weights = jnp.asarray(np.random.default_rng(1).standard_normal(arguments[0].shape), jnp.float32)

    def gradient(dtype):
        def weighted(*arguments):
            return jnp.sum(tiled_attention(*arguments, None).astype(jnp.float32) * weights)

        return jax.jit(jax.grad(weighted, argnums=(0, 1, 2)))(*(x.astype(dtype) for x in arguments))

    for found, expected in zip(gradient(dtype), gradient(jnp.float32), strict=True):
        assert found.dtype == dtype
        error = jnp.linalg.norm(found.astype(jnp.float32) - expected) / jnp.linalg.norm(expected)
        assert error < jnp.finfo(dtype).eps
