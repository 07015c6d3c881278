"""h_t = f_t h_{t-1} + u_t over a sequence, as in jaxlm/ops/linear_recurrence.py."""

import mlx.core as mx

CHUNK = 64


def linear_recurrence(decays: mx.array, updates: mx.array, initial: mx.array) -> mx.array:
    """States `[B, L, E]` of decays and updates `[B, L, E]` from an initial state `[B, E]`, all float32.

    Parallel within chunks of CHUNK steps, one after another from chunk to chunk.
    """
    states = []
    for start in range(0, updates.shape[1], CHUNK):
        chunk = _states(decays[:, start : start + CHUNK], updates[:, start : start + CHUNK], initial)
        states.append(chunk)
        initial = chunk[:, -1]
    return mx.concatenate(states, axis=1)


def _states(decays: mx.array, updates: mx.array, initial: mx.array) -> mx.array:
    """Doubling (Hillis and Steele 1986): after step k each place has taken in the 2^k before it."""
    length = updates.shape[1]
    reach = 1
    while reach < length:
        earlier = decays[:, reach:]
        updates = mx.concatenate([updates[:, :reach], updates[:, reach:] + earlier * updates[:, :-reach]], axis=1)
        decays = mx.concatenate([decays[:, :reach], earlier * decays[:, :-reach]], axis=1)
        reach *= 2
    return updates + decays * initial[:, None]
