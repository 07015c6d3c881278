"""The training step, compiled: gradients of micro-batches added up, then one update."""

import functools
from collections.abc import Mapping, Sequence
from typing import cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map, tree_unflatten

from jaxlm.common.architecture.parameters import parameters
from jaxlm.common.architecture.ternary import quantize_weight
from jaxlm.common.ternary_health import health_metrics
from mlxlm.finetune.data import Batch
from mlxlm.finetune.objectives.next_token import next_token
from mlxlm.finetune.objectives.objective import Objective
from mlxlm.finetune.optimizer import AdamW, Arrays, OptimizerState, sum_of_squares
from mlxlm.model.language_model import LanguageModel
from mlxlm.model.trees import flat_arrays

Metrics = dict[str, mx.array]
# Sums over a batch, as a plain tuple, and their gradients.
Total = tuple[tuple[mx.array, mx.array, Metrics], Arrays]
# Parameters of a matrix that is updated alone, in memory of its own.
LARGE = 2**20


class TrainStep:
    """Changes a model's trainable parameters and the optimizer's state by one batch at a time.

    The gradient is that of the mean loss of the `objective` (by default `next_token`) over all examples of a batch,
    however many micro-batches and processes it is computed in. `ternary` names the parameters whose codes are counted.
    """

    def __init__(
        self,
        model: LanguageModel,
        optimizer: AdamW,
        grad_accumulation_steps: int,
        ternary: Sequence[str] = (),
        objective: Objective | None = None,
    ):
        self._model, self._optimizer, self._micro_batches = model, optimizer, grad_accumulation_steps
        self._objective = objective or next_token()
        self._sizes = {path: array.size for path, array in self.parameters.items()}
        self._parts = _parts(self._sizes)
        self._ternary = _blocks(model, [path for path in ternary if path in self._sizes])
        self.step = 0
        """Steps taken."""
        self.optimizer_state = optimizer.init(self.parameters)
        # The model is an output too: while it is traced, it holds traced parameters.
        captured = [model.state, mx.random.state]
        self._add_gradients = mx.compile(self._add_gradients, inputs=captured, outputs=captured)
        self._update = mx.compile(self._update)
        self._norm = mx.compile(self._mean_norm)

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
        (loss, count, found_metrics), gradients = _sum_over_processes(self._total(batch))
        norm = self._norm(gradients, count)
        before, state, after = self.parameters, self.optimizer_state, self._optimizer.init({})
        sums: Arrays = {}
        for paths in self._parts:
            # Nothing else holds these arrays, so their memory is free when the part is computed.
            old, gradient = _taken(before, paths), _taken(gradients, paths)
            moments = {name: _taken(moment, paths) for name, moment in state.items()}
            updated, moments, found = self._update(old, gradient, moments, count, norm, factors)
            self._model.update(tree_unflatten(list(updated.items())))
            for name, moment in moments.items():
                after[name] |= moment
            sums = {name: sums[name] + number if sums else number for name, number in found.items()}
            del old, gradient
            evaluate = mx.eval if self._sizes[paths[0]] >= LARGE else mx.async_eval
            evaluate(updated, moments, sums)
        self.optimizer_state = after
        self.step += 1
        metrics = {
            **{f"train/{name}": value / count for name, value in {"loss": loss, **found_metrics}.items()},
            "train/grad_norm": norm,
            "train/param_norm": mx.sqrt(sums["squares"]),
            "train/learning_rate": factors["learning_rate"],
        }
        if self._ternary:
            sizes = [self._sizes[path] for path in self._ternary]
            counted = np.bincount(list(self._ternary.values()), sizes, len(sums["zeros"])).astype(np.float32)
            metrics |= health_metrics(sums["zeros"], sums["flips"], counted)
        return metrics

    def _total(self, batch: Batch) -> Total:
        """Return the sums of a batch and their gradients, added up over its micro-batches."""
        total = None
        for number in range(self._micro_batches):
            rows = {name: array[number :: self._micro_batches] for name, array in batch.items()}
            total = self._add_gradients(rows, total)
            # Evaluated alone: activations of another micro-batch, or the update, would be in memory at the same time.
            mx.async_eval(total)
        return cast(Total, total)

    def _add_gradients(self, batch: Batch, total: Total | None) -> Total:
        sums, gradients = nn.value_and_grad(self._model, lambda *inputs: tuple(self._objective(*inputs)))(
            self._model, batch
        )
        flat = flat_arrays(gradients)
        if self._micro_batches > 1:  # sums of several are kept in float32
            flat = {path: array.astype(mx.float32) for path, array in flat.items()}
        found = sums, flat
        return found if total is None else tree_map(mx.add, total, found)

    def _mean_norm(self, gradients: Arrays, count: mx.array) -> mx.array:
        return mx.sqrt(sum_of_squares({path: array / count for path, array in gradients.items()}))

    def _update(
        self,
        before: Arrays,
        gradients: Arrays,
        moments: OptimizerState,
        count: mx.array,
        norm: mx.array,
        factors: Arrays,
    ) -> tuple[Arrays, OptimizerState, Metrics]:
        """Return some parameters and their moments after the step, and sums for the metrics."""
        gradients = {path: array / count for path, array in gradients.items()}
        after, moments = self._optimizer.update(before, gradients, moments, factors, norm)
        return after, moments, {"squares": sum_of_squares(after), **self._ternary_health(before, after)}

    def _ternary_health(self, before: Arrays, after: Arrays) -> Metrics:
        """Count the codes that are zero after a step and those that it changed, as `health_metrics` takes them."""
        form, places = self._model.config.ternary_form, mx.arange(self._model.config.num_layers + 1)
        zeros, flips = mx.zeros_like(places), mx.zeros_like(places)
        for path in (path for path in self._ternary if path in before):
            old, new = (quantize_weight(arrays[path], form, mx)[0] for arrays in (before, after))
            is_there = places == self._ternary[path]
            zeros, flips = zeros + is_there * mx.sum(new == 0), flips + is_there * mx.sum(new != old)
        return {"zeros": zeros, "flips": flips}


def _blocks(model: LanguageModel, paths: Sequence[str]) -> dict[str, int]:
    """Return the number of the block of each parameter, and the number of blocks for one outside of them."""
    outside = model.config.num_layers
    blocks = {row.attribute: outside if row.block is None else row.block for row in parameters(model.config)}
    return {path: blocks[path] for path in paths}


def _taken(arrays: Arrays, paths: Sequence[str]) -> Arrays:
    """Return some arrays, those that exist, which are then no longer among the others."""
    return {path: arrays.pop(path) for path in paths if path in arrays}


def _parts(sizes: Mapping[str, int]) -> list[list[str]]:
    """Return the parameters in parts whose update takes little memory: each large one alone, all others together."""
    small = [path for path, size in sizes.items() if size < LARGE]
    return [part for part in (small, *([path] for path, size in sizes.items() if size >= LARGE)) if part]


def _sum_over_processes(total: Total) -> Total:
    group = mx.distributed.init()
    return total if group.size() == 1 else tree_map(functools.partial(mx.distributed.all_sum, group=group), total)
