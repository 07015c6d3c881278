"""h_t = f_t h_{t-1} + u_t over a sequence, as in jaxlm/ops/linear_recurrence.py."""

import mlx.core as mx

from mlxlm.model.shapes import Recurrent, State

CHUNK = 64


def linear_recurrence(decays: Recurrent, updates: Recurrent, initial: State) -> Recurrent:
    """Return the states h `[B, L, E]` of decays f and updates u `[B, L, E]`, from an initial state `[B, E]`.

    All arrays are float32. The steps of a chunk of CHUNK run in parallel; chunks run one after another.
    """
    states = []
    for start in range(0, updates.shape[1], CHUNK):
        chunk = _chunk_states(decays[:, start : start + CHUNK], updates[:, start : start + CHUNK], initial)
        states.append(chunk)
        initial = chunk[:, -1]
    return mx.concatenate(states, axis=1)


def _chunk_states(decays: Recurrent, updates: Recurrent, initial: State) -> Recurrent:
    """Return the states of one chunk by doubling (Hillis and Steele 1986).

    Before each round, position t holds the decay and the update of the `reach` steps that end at t, composed into one.
    """
    length = updates.shape[1]
    reach = 1
    while reach < length:
        later = decays[:, reach:]
        updates = mx.concatenate([updates[:, :reach], updates[:, reach:] + later * updates[:, :-reach]], axis=1)
        decays = mx.concatenate([decays[:, :reach], later * decays[:, :-reach]], axis=1)
        reach *= 2
    return updates + decays * initial[:, None]
