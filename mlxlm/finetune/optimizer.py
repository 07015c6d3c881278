"""Learning-rate schedules and AdamW, as in jaxlm/training/optimizer.py: the formulas and the order of optax."""

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


def global_norm(arrays: Arrays) -> mx.array:
    """Return the Euclidean norm of all arrays together."""
    return mx.sqrt(sum((mx.sum(mx.square(array.astype(mx.float32))) for array in arrays.values()), mx.array(0.0)))


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
        self, parameters: Arrays, gradients: Arrays, state: OptimizerState, factors: Arrays
    ) -> tuple[Arrays, OptimizerState]:
        """Return parameters and moments after one step."""
        config = self._config
        gradients = self._clipped(gradients)
        keys = mx.random.split(factors["rounding_key"], len(parameters))
        updated: Arrays = {}
        after: OptimizerState = {"first_moment": {}, "second_moment": {}}
        for key, (path, parameter) in zip(keys, parameters.items(), strict=True):
            gradient = gradients[path].astype(mx.float32)
            first = (1 - config.b1) * gradient + config.b1 * state["first_moment"][path]
            second = (1 - config.b2) * mx.square(gradient) + config.b2 * state["second_moment"][path]
            change = first * factors["first_correction"]
            change = change / (mx.sqrt(second * factors["second_correction"]) + config.eps)
            if is_decayed(path.split(".")):
                change = change + factors["weight_decay"] * parameter
            new = parameter - factors["learning_rate"] * change
            updated[path] = rounded_by_chance(new, key) if parameter.dtype == mx.bfloat16 else new
            after["first_moment"][path] = first.astype(DTYPES[config.first_moment_dtype])
            after["second_moment"][path] = second
        return updated, after

    def _clipped(self, gradients: Arrays) -> Arrays:
        largest = self._config.grad_clip_norm
        if largest == 0:
            return gradients
        norm = global_norm(gradients)
        return {path: mx.where(norm < largest, array, array / norm * largest) for path, array in gradients.items()}
