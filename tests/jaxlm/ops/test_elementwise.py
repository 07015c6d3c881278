import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.ops import elementwise
from jaxlm.ops.elementwise import rotate_halves, times_gain


def values_and_gradients(function, dy, *arguments):
    value, gradients = jax.vjp(function, *arguments)
    return value, *gradients(dy)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 5, 3, 7)])
def test_a_gain_has_the_gradients_that_jax_derives(monkeypatch, shape, platform):
    monkeypatch.setattr(elementwise, "target_platform", lambda: platform)
    rng = np.random.default_rng(0)
    x, dy, gain = (jnp.asarray(rng.standard_normal(size), jnp.float32) for size in (shape, shape, shape[-1:]))
    found = values_and_gradients(times_gain, dy, x, gain)
    right = values_and_gradients(lambda x, gain: x * jnp.broadcast_to(gain, x.shape), dy, x, gain)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, right)


def test_a_gain_keeps_its_precision():
    x, gain = jnp.ones((4, 3), jnp.float32), jnp.ones(3, jnp.bfloat16)
    assert values_and_gradients(times_gain, x, x, gain)[2].dtype == jnp.bfloat16


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_rotation_has_the_gradient_that_jax_derives(dtype):
    rng = np.random.default_rng(0)
    x, dy = (jnp.asarray(rng.standard_normal((2, 5, 3, 8)), dtype) for _ in range(2))
    angles = jnp.asarray(rng.standard_normal((2, 5, 1, 4)), jnp.float32)
    cos, sin = jnp.cos(angles), jnp.sin(angles)

    def as_numbers(x):  # (x_1 + i x_2) e^(i angle)
        turned = (x[..., :4].astype(jnp.float32) + 1j * x[..., 4:].astype(jnp.float32)) * (cos + 1j * sin)
        return jnp.concatenate([turned.real, turned.imag], axis=-1).astype(dtype)

    found = values_and_gradients(lambda x: rotate_halves(x, cos, sin), dy, x)
    right = values_and_gradients(as_numbers, dy, x)
    tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
    for a, b in zip(found, right, strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), rtol=tolerance, atol=tolerance)


def test_angles_get_no_gradient():
    x, angle = jnp.ones((1, 2, 1, 4)), jnp.ones((1, 2, 1, 2))
    gradients = jax.grad(lambda cos, sin: jnp.sum(rotate_halves(x, cos, sin)), argnums=(0, 1))(angle, angle)
    assert not any(np.any(gradient) for gradient in gradients)
