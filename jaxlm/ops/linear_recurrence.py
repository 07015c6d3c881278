"""h_t = f_t h_{t-1} + u_t over a sequence, elementwise in float32, with its own backward pass (arXiv 1709.04057).

With the gradient dh_t of the loss by each state alone, and g_t by the state and all that follow from it:

    g_t = dh_t + f_{t+1} g_{t+1}     df_t = g_t h_{t-1}     du_t = g_t     dh_0 = f_1 g_1

So the backward pass is the same recurrence in reverse. It saves the decays and the states, and nothing of the scan.

On a CPU the steps are taken one by one where the arrays lie, which keeps its vector units busy and copies nothing.
Elsewhere they are taken in parallel chunks: within all chunks of CHUNK steps at once, then from chunk to chunk.
On a CPU, with gradients, chunks take 3 times as long, and `jax.lax.associative_scan` 4 to 5 times (AMD EPYC, 2 cores,
2026-11-28; also scripts/benchmark.py mixers).
"""

import jax
import jax.numpy as jnp

from jaxlm.ops.shapes import Recurrent, State

CHUNK = 32


@jax.custom_vjp
def linear_recurrence(decays: Recurrent, updates: Recurrent, initial: State) -> Recurrent:
    """Return the states h `[B, L, E]` of decays f and updates u `[B, L, E]` and an initial state h_0 `[B, E]`."""
    return _states(decays, updates, initial)


def _forward(decays: Recurrent, updates: Recurrent, initial: State):
    states = _states(decays, updates, initial)
    return states, (decays, states, initial)


def _backward(residuals, dstates: Recurrent):
    return jax.lax.platform_dependent(*residuals, dstates, cpu=_backward_in_steps, default=_backward_in_chunks)


linear_recurrence.defvjp(_forward, _backward)


def _states(decays: Recurrent, updates: Recurrent, initial: State) -> Recurrent:
    if updates.shape[1] == 1:
        return decays * initial[:, None] + updates
    return jax.lax.platform_dependent(decays, updates, initial, cpu=in_steps, default=in_chunks)


def in_steps(decays: Recurrent, updates: Recurrent, initial: State) -> Recurrent:
    """Return the states, computed one after another."""

    def step(t, carry):
        state, states = carry
        state = _at(decays, t) * state + _at(updates, t)
        return state, _put(states, state, t)

    return jax.lax.fori_loop(0, decays.shape[1], step, (initial, jnp.zeros_like(updates)))[1]


def _backward_in_steps(decays: Recurrent, states: Recurrent, initial: State, dstates: Recurrent):
    def step(t, carry):
        dstate, ddecays, dupdates = carry
        dstate = _at(dstates, t) + dstate  # g_t; the carry is f_{t+1} g_{t+1}, [B, E]
        previous = jnp.where(t == 0, initial, _at(states, jnp.maximum(t - 1, 0)))
        return dstate * _at(decays, t), _put(ddecays, dstate * previous, t), _put(dupdates, dstate, t)

    last = decays.shape[1] - 1
    carry = (jnp.zeros_like(initial), jnp.zeros_like(decays), jnp.zeros_like(decays))
    dinitial, ddecays, dupdates = jax.lax.fori_loop(0, last + 1, lambda i, carry: step(last - i, carry), carry)
    return ddecays, dupdates, dinitial


def _at(x: Recurrent, t: jax.Array) -> State:
    return jax.lax.dynamic_index_in_dim(x, t, axis=1, keepdims=False)


def _put(x: Recurrent, value: State, t: jax.Array) -> Recurrent:
    return jax.lax.dynamic_update_index_in_dim(x, value, t, axis=1)


def in_chunks(decays: Recurrent, updates: Recurrent, initial: State) -> Recurrent:
    """Return the states, computed in all chunks at once.

    From a state of zero, step j of chunk c has the state s_cj. With the product p_cj of the chunk's decays up to j,
    h_cj = s_cj + p_cj h_(c-1), where h_(c-1) is the last state of the chunk before.
    """
    B, L, E = updates.shape
    padding = ((0, 0), (0, -L % CHUNK), (0, 0))
    # [B, L, E] -> [CHUNK, B, chunks, E]
    decays, updates = (jnp.moveaxis(jnp.pad(x, padding).reshape(B, -1, CHUNK, E), 2, 0) for x in (decays, updates))
    zeros = jnp.zeros(updates.shape[1:], updates.dtype)

    def within(carry, step):
        state, product = carry
        decay, update = step
        carry = (decay * state + update, decay * product)
        return carry, carry

    # s_cj and p_cj, [CHUNK, B, chunks, E]
    _, (states, products) = jax.lax.scan(within, (zeros, zeros + 1), (decays, updates))

    def across(state, chunk):
        last_state, last_product = chunk
        return last_product * state + last_state, state

    # The state h_(c-1) that each chunk starts from, [chunks, B, E].
    lasts = (jnp.moveaxis(states[-1], 1, 0), jnp.moveaxis(products[-1], 1, 0))
    _, starts = jax.lax.scan(across, initial, lasts)
    states = states + products * jnp.moveaxis(starts, 0, 1)[None]
    return jnp.moveaxis(states, 0, 2).reshape(B, -1, E)[:, :L]


def _backward_in_chunks(decays: Recurrent, states: Recurrent, initial: State, dstates: Recurrent):
    # g_t, by the recurrence in reverse with the decays f_{t+1}; 0 after the last. All are [B, L, E].
    following = jnp.concatenate([decays[:, 1:], jnp.zeros_like(decays[:, :1])], axis=1)
    dupdates = in_chunks(following[:, ::-1], dstates[:, ::-1], jnp.zeros_like(initial))[:, ::-1]
    previous = jnp.concatenate([initial[:, None], states[:, :-1]], axis=1)
    return dupdates * previous, dupdates, decays[:, 0] * dupdates[:, 0]
