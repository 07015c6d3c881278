import jax
import jax.numpy as jnp
import mlx.core as mx
import numpy as np
import pytest

import mlxlm.model.linear_recurrence
from jaxlm.ops.linear_recurrence import CHUNK, linear_recurrence

LENGTHS = (1, CHUNK - 1, CHUNK, 2 * CHUNK + 5)


def inputs(length, seed=0):
    rng = np.random.default_rng(seed)
    decays = rng.uniform(0, 1, (2, length, 3))
    decays[:, length // 2] = 0  # a document starts
    return decays, rng.normal(size=(2, length, 3)), rng.normal(size=(2, 3))


def loop(decays, updates, initial):
    """Return the states by the equation as written, step by step."""

    def step(state, inputs):
        state = inputs[0] * state + inputs[1]
        return state, state

    by_step = [jnp.moveaxis(jnp.asarray(array), 1, 0) for array in (decays, updates)]
    return jnp.moveaxis(jax.lax.scan(step, jnp.asarray(initial), by_step)[1], 0, 1)


@pytest.mark.parametrize("platform", ["cpu", "default"])
@pytest.mark.parametrize("length", LENGTHS)
def test_states_and_gradients_are_those_of_a_loop_in_float64(length, platform, monkeypatch):
    # Test the code of every platform: on a CPU, jax would choose only one of the two.
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, **branches: branches[platform](*args))
    with jax.enable_x64(True):
        arrays = [jnp.asarray(array, jnp.float64) for array in inputs(length)]
        weights = jnp.asarray(np.random.default_rng(1).normal(size=arrays[1].shape))

        def weighted(function):
            return jax.jit(jax.value_and_grad(lambda *args: (function(*args) * weights).sum(), argnums=(0, 1, 2)))

        value, gradients = weighted(linear_recurrence)(*arrays)
        expected_value, expected = weighted(loop)(*arrays)
        np.testing.assert_allclose(value, expected_value, rtol=1e-12)
        for found, gradient in zip(gradients, expected, strict=True):
            assert found.dtype == jnp.float64
            np.testing.assert_allclose(found, gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("length", LENGTHS)
def test_mlx_computes_the_same_and_in_pieces_too(length):
    arrays = [array.astype(np.float32) for array in inputs(length)]
    expected = loop(*arrays)
    decays, updates, initial = map(mx.array, arrays)
    whole = mlxlm.model.linear_recurrence.linear_recurrence(decays, updates, initial)
    np.testing.assert_allclose(np.array(whole), expected, rtol=1e-5, atol=1e-6)
    cut = length // 3
    if cut:
        first = mlxlm.model.linear_recurrence.linear_recurrence(decays[:, :cut], updates[:, :cut], initial)
        second = mlxlm.model.linear_recurrence.linear_recurrence(decays[:, cut:], updates[:, cut:], first[:, -1])
        np.testing.assert_allclose(np.array(mx.concatenate([first, second], axis=1)), expected, rtol=1e-5, atol=1e-6)


def test_nothing_crosses_a_decay_of_zero():
    decays, updates, initial = (jnp.asarray(array, jnp.float32) for array in inputs(80))
    gradient = jax.jit(jax.grad(lambda u: linear_recurrence(decays, u, initial)[:, 40:].sum()))(updates)
    assert (gradient[:, :40] == 0).all() and (gradient[:, 40:] != 0).all()
