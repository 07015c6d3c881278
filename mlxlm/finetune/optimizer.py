"""Learning-rate schedules and AdamW, as in jaxlm/training/optimizer.py: the formulas and the order of optax."""

import zlib

import mlx.core as mx

from jaxlm.common.run.optimizer_config import (
    OptimizerConfig,
    is_decayed,
    learning_rate,
    learning_rate_pieces,
    weight_decay_end,
)

Arrays = dict[str, mx.array]
OptimizerState = dict[str, Arrays]
DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16}


def sum_of_squares(arrays: Arrays) -> mx.array:
    """Return the square of the Euclidean norm of all arrays together."""
    return sum((mx.sum(mx.square(array.astype(mx.float32))) for array in arrays.values()), mx.array(0.0))


def rounded_by_chance(array: mx.array, key: mx.array) -> mx.array:
    """Return float32 numbers as bfloat16, rounded up or down with the chance that makes the mean right.

    Stochastic rounding (arXiv 1502.02551): an update below half of the last bit is not lost in the mean.
    """
    noise = mx.random.randint(0, 1 << 16, array.shape, mx.uint32, key=key)
    return ((array.view(mx.uint32) + noise) & 0xFFFF0000).view(mx.float32).astype(mx.bfloat16)


class AdamW:
    """AdamW (arXiv 1711.05101) behind a clip of the global gradient norm; pure functions of arrays by dotted path."""

    def __init__(self, config: OptimizerConfig, num_train_steps: int):
        """Raise ValueError where the warm-up leaves no step to train."""
        self._config = config
        self._pieces = learning_rate_pieces(config, num_train_steps)
        self._decay_end = weight_decay_end(config, num_train_steps)

    def init(self, parameters: Arrays) -> OptimizerState:
        """Return the moments before the first step."""
        dtype = DTYPES[self._config.first_moment_dtype]
        return {
            "first_moment": {path: mx.zeros(array.shape, dtype) for path, array in parameters.items()},
            "second_moment": {path: mx.zeros(array.shape) for path, array in parameters.items()},
        }

    def factors(self, step: int) -> Arrays:
        """Return the numbers of a step, counted from 0, that `update` needs."""
        config = self._config
        is_decayed_now = self._decay_end is None or step < self._decay_end
        numbers = {
            "learning_rate": learning_rate(self._pieces, step),
            "weight_decay": config.weight_decay if is_decayed_now else 0.0,
            "first_correction": 1 / (1 - config.b1 ** (step + 1)),
            "second_correction": 1 / (1 - config.b2 ** (step + 1)),
        }
        return {name: mx.array(number) for name, number in numbers.items()} | {"rounding_key": mx.random.key(step)}

    def update(
        self, parameters: Arrays, gradients: Arrays, state: OptimizerState, factors: Arrays, norm: mx.array
    ) -> tuple[Arrays, OptimizerState]:
        """Return parameters and moments after one step; `norm` is that of the gradients of all parameters."""
        config = self._config
        updated: Arrays = {}
        after: OptimizerState = {"first_moment": {}, "second_moment": {}}
        for path, parameter in parameters.items():
            gradient = self._clipped(gradients[path].astype(mx.float32), norm)
            first = (1 - config.b1) * gradient + config.b1 * state["first_moment"][path]
            second = (1 - config.b2) * mx.square(gradient) + config.b2 * state["second_moment"][path]
            change = first * factors["first_correction"]
            change = change / (mx.sqrt(second * factors["second_correction"]) + config.eps)
            if is_decayed(path.split(".")):
                change = change + factors["weight_decay"] * parameter
            new = parameter - factors["learning_rate"] * change
            if parameter.dtype == mx.bfloat16:
                new = rounded_by_chance(new, factors["rounding_key"] + zlib.crc32(path.encode()))
            updated[path] = new
            after["first_moment"][path] = first.astype(DTYPES[config.first_moment_dtype])
            after["second_moment"][path] = second
        return updated, after

    def _clipped(self, gradient: mx.array, norm: mx.array) -> mx.array:
        largest = self._config.grad_clip_norm
        return gradient if largest == 0 else mx.where(norm < largest, gradient, gradient / norm * largest)
