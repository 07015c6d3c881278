import jax
import jax.numpy as jnp
import mlx.core as mx
import numpy as np
import pytest

from jaxlm.common.architecture.rational import SILU_DENOMINATOR, SILU_NUMERATOR, WIDTH, rational, silu_coefficients

SILU = silu_coefficients("numerator"), silu_coefficients("denominator")


def silu(x):
    return x / (1 + np.exp(-x))


def test_the_constants_are_the_least_squares_fit_of_silu():
    """By Sanathanan and Koerner: min |P - silu (1 + Q)|^2 / (1 + Q)^2, where the divisor is that of the fit before."""
    x = np.linspace(-6, 6, 4001)
    powers, below = np.vander(x / WIDTH, 6, increasing=True), np.ones_like(x)
    for _ in range(60):
        columns = np.hstack([powers, -silu(x)[:, None] * powers[:, 1:5]])
        found = np.linalg.lstsq(columns / below[:, None], silu(x) / below, rcond=None)[0]
        below = 1 + powers[:, 1:5] @ found[6:]
    np.testing.assert_allclose(found, [*SILU_NUMERATOR, *SILU_DENOMINATOR], atol=1e-6)
    assert below.min() == 1  # so |Q| is Q
    assert np.abs(rational(np.repeat(x[:, None], 8, axis=1), *SILU, np)[:, 0] - silu(x)).max() < 2.2e-4


def test_each_group_of_channels_has_its_own_function():
    numerator, denominator = (np.zeros_like(each) for each in SILU)
    numerator[:, 1], denominator[:, 0] = np.arange(8), -1
    x = np.linspace(-3, 3, 32).reshape(2, 16)
    np.testing.assert_allclose(
        rational(x, numerator, denominator, np), np.repeat(np.arange(8), 2) * x / (WIDTH + np.abs(x)), rtol=1e-6
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_jax_and_mlx_compute_the_same_value_and_gradient(dtype):
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal((4, 16)).astype(np.float32) * 3 for _ in range(2))
    coefficients = [each + 0.1 * rng.standard_normal(each.shape).astype(np.float32) for each in SILU]

    def total(x, numerator, denominator, dy, xp):
        y = rational(x.astype(getattr(xp, dtype)), numerator, denominator, xp)
        assert y.dtype == getattr(xp, dtype)
        return (y.astype(xp.float32) * dy).sum()

    expected = jax.value_and_grad(total, argnums=(0, 1, 2))(*map(jnp.asarray, (x, *coefficients, dy)), jnp)
    found = mx.value_and_grad(total, argnums=(0, 1, 2))(*map(mx.array, (x, *coefficients, dy)), mx)
    assert found[0].item() == pytest.approx(float(expected[0]), rel=1e-6)
    for ours, theirs in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(np.array(ours), theirs, rtol=1e-5, atol=1e-5)


def test_large_inputs_of_bfloat16_stay_finite():
    x = jnp.array([[-1e4, -100, -1, 0, 1, 100, 1e3, 1e4]], jnp.bfloat16)
    y, gradient = jax.vjp(lambda x: rational(x, *SILU, jnp), x)
    assert jnp.isfinite(y).all() and jnp.isfinite(gradient(y)[0]).all()
