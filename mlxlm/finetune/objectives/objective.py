"""The interface of objectives, as in jaxlm/training/objectives/objective.py: the step does not know which one runs."""

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx

from mlxlm.model.language_model import LanguageModel
from mlxlm.model.loss import Batch


class Sums(NamedTuple):
    """Sums over the examples of a batch. Those of micro-batches are added up, then divided by `num_examples`."""

    loss: mx.array
    """The loss whose gradient is taken."""
    num_examples: mx.array
    """Tokens, or pairs."""
    metrics: dict[str, mx.array]
    """Further numbers to report, by name."""


Objective = Callable[[LanguageModel, Batch], Sums]
