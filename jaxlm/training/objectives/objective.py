"""The interface of objectives: pure functions of a model, its weights and a batch. The step does not know which one."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxlm.model.language_model import LanguageModel
from jaxlm.ops.ternary_linear import Params
from shared_tokenizer.data.batches import Batch


class Sums(NamedTuple):
    """Sums over the examples of a batch. Those of micro-batches are added up, then divided by `num_examples`."""

    loss: jax.Array
    """The loss whose gradient is taken."""
    num_examples: jax.Array
    """Tokens, or pairs."""
    metrics: dict[str, jax.Array]
    """Further numbers to report, by name."""


# Arrays next to the batch, the same in every step, in a dict by name: the weights of a teacher, for example. None
# where there are none.
Extras = Any
Objective = Callable[[LanguageModel, Params, Batch, Extras], Sums]


def make_sums_function(objective: Objective, model: LanguageModel, out_shardings: Any = None) -> jax.stages.Wrapped:
    """Return the jitted function (weights, batch, extras) -> sums, without a gradient, for held-out batches."""
    return jax.jit(lambda weights, batch, extras: objective(model, weights, batch, extras), out_shardings=out_shardings)
