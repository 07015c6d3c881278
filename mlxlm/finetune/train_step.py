"""The training step, compiled: gradients of micro-batches added up, then one update."""

import functools
from collections.abc import Callable, Sequence
from typing import cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map, tree_unflatten

from jaxlm.common.architecture.ternary import quantize_weight
from mlxlm.finetune.data import Batch
from mlxlm.finetune.optimizer import AdamW, Arrays, OptimizerState, global_norm
from mlxlm.model.language_model import LanguageModel
from mlxlm.model.loss import loss_sum
from mlxlm.model.trees import flat_arrays

Metrics = dict[str, mx.array]
# Summed loss in nats, tokens and gradients.
Total = tuple[mx.array, mx.array, Arrays]
LossSum = Callable[[LanguageModel, Batch], tuple[mx.array, mx.array]]


class TrainStep:
    """Changes a model's trainable parameters and the optimizer's state by one batch at a time.

    The gradient is that of the mean loss over all tokens of the batch, however many micro-batches and processes it is
    computed in. `ternary` names the parameters whose codes are counted; `loss` sums over the tokens of a batch, and
    counts them.
    """

    def __init__(
        self,
        model: LanguageModel,
        optimizer: AdamW,
        grad_accumulation_steps: int,
        ternary: Sequence[str] = (),
        loss: LossSum = loss_sum,
    ):
        self._model, self._optimizer, self._micro_batches = model, optimizer, grad_accumulation_steps
        self._loss = loss
        self._ternary = [path for path in ternary if path in self.parameters]
        self.step = 0
        """Steps taken."""
        self.optimizer_state = optimizer.init(self.parameters)
        # The model is an output too: while it is traced, it holds traced parameters.
        captured = [model.state, mx.random.state]
        self._add_gradients = mx.compile(self._add_gradients, inputs=captured, outputs=captured)
        self._update = mx.compile(self._update)

    @property
    def parameters(self) -> Arrays:
        """The trainable parameters by dotted path."""
        return flat_arrays(self._model.trainable_parameters())

    def restore(self, step: int, parameters: Arrays, optimizer_state: OptimizerState) -> None:
        """Go on from the state after an earlier step."""
        self.step = step
        self._model.update(tree_unflatten(list(parameters.items())))
        self.optimizer_state = optimizer_state

    def __call__(self, batch: Batch) -> Metrics:
        """Take one step. The metrics are those of the model before it."""
        factors = self._optimizer.factors(self.step)
        # Nothing else holds the gradients or the state before the step, so their memory is reused.
        parameters, self.optimizer_state, metrics = self._update(
            self.parameters, self.optimizer_state, self._total(batch), factors
        )
        self.step += 1
        self._model.update(tree_unflatten(list(parameters.items())))
        mx.async_eval(self._model.parameters(), self.optimizer_state, metrics)
        return metrics | {"train/learning_rate": factors["learning_rate"]}

    def _total(self, batch: Batch) -> Total:
        """Return loss, tokens and gradients of a batch, summed over its micro-batches."""
        total = None
        for number in range(self._micro_batches):
            rows = {name: array[number :: self._micro_batches] for name, array in batch.items()}
            total = self._add_gradients(rows, total)
            # Evaluated alone: activations of another micro-batch, or the update, would be in memory at the same time.
            mx.async_eval(total)
        return cast(Total, total)

    def _add_gradients(self, batch: Batch, total: Total | None) -> Total:
        (nats, tokens), gradients = nn.value_and_grad(self._model, self._loss)(self._model, batch)
        flat = flat_arrays(gradients)
        if self._micro_batches > 1:  # sums of several are kept in float32
            flat = {path: array.astype(mx.float32) for path, array in flat.items()}
        found = nats, tokens, flat
        return found if total is None else tree_map(mx.add, total, found)

    def _update(
        self, parameters: Arrays, state: OptimizerState, total: Total, factors: Arrays
    ) -> tuple[Arrays, OptimizerState, Metrics]:
        nats, tokens, gradients = _sum_over_processes(total)
        gradients = {path: array / tokens for path, array in gradients.items()}
        updated, after = self._optimizer.update(parameters, gradients, state, factors)
        metrics = {
            "train/loss": nats / tokens,
            "train/grad_norm": global_norm(gradients),
            "train/param_norm": global_norm(updated),
            **self._ternary_health(parameters, updated),
        }
        return updated, after, metrics

    def _ternary_health(self, before: Arrays, after: Arrays) -> Metrics:
        """Return the share of zero codes after a step, and the share of codes that the step changed."""
        if not self._ternary:
            return {}
        form = self._model.config.ternary_form
        zeros, flips, count = mx.array(0), mx.array(0), 0
        for path in self._ternary:
            old, new = (quantize_weight(arrays[path], form, mx)[0] for arrays in (before, after))
            zeros, flips, count = zeros + mx.sum(new == 0), flips + mx.sum(new != old), count + new.size
        return {"ternary/zero_fraction": zeros / count, "ternary/flip_rate": flips / count}


def _sum_over_processes(total: Total) -> Total:
    group = mx.distributed.init()
    return total if group.size() == 1 else tree_map(functools.partial(mx.distributed.all_sum, group=group), total)
