"""Learning-rate schedules, AdamW and Muon, as in jaxlm/training/optimizer.py: the formulas and the order of optax."""

import math
import zlib

import mlx.core as mx

from jaxlm.common.architecture.parameters import is_block_matrix, is_decayed
from jaxlm.common.run.optimizer_config import (
    MUON_RMS,
    NEWTON_SCHULZ_STEPS,
    OptimizerConfig,
    learning_rate,
    learning_rate_pieces,
    weight_decay_end,
)

Arrays = dict[str, mx.array]
OptimizerState = dict[str, Arrays]
# As in optax.contrib: coefficients of the quintic polynomial, its steps, and what keeps the norm from 0.
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_NEWTON_SCHULZ_EPS = 1e-8
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
        updated: Arrays = {}
        after: OptimizerState = {"first_moment": {}, "second_moment": {}}
        for path, parameter in parameters.items():
            gradient = self._clipped(gradients[path].astype(mx.float32), norm)
            moments = {name: arrays[path] for name, arrays in state.items() if path in arrays}
            change, moments = self._change(path, gradient, moments, factors)
            if is_decayed(path.split(".")):
                change = change + factors["weight_decay"] * parameter
            new = parameter - factors["learning_rate"] * change
            if parameter.dtype == mx.bfloat16:
                new = rounded_by_chance(new, factors["rounding_key"] + zlib.crc32(path.encode()))
            updated[path] = new
            for name, moment in moments.items():
                after[name][path] = moment
        return updated, after

    def _change(self, path: str, gradient: mx.array, moments: Arrays, factors: Arrays) -> tuple[mx.array, Arrays]:
        """Return the change of a parameter per unit of learning rate, without weight decay, and its new moments."""
        config = self._config
        first = (1 - config.b1) * gradient + config.b1 * moments["first_moment"]
        second = (1 - config.b2) * mx.square(gradient) + config.b2 * moments["second_moment"]
        change = first * factors["first_correction"]
        change = change / (mx.sqrt(second * factors["second_correction"]) + config.eps)
        return change, {"first_moment": self._stored(first), "second_moment": second}

    def _stored(self, first_moment: mx.array) -> mx.array:
        return first_moment.astype(DTYPES[self._config.first_moment_dtype])

    def _clipped(self, gradient: mx.array, norm: mx.array) -> mx.array:
        largest = self._config.grad_clip_norm
        return gradient if largest == 0 else mx.where(norm < largest, gradient, gradient / norm * largest)


class Muon(AdamW):
    """Muon for the matrices of blocks, which have a first moment only, and AdamW for the other parameters.

    The momentum is orthogonalized in float32, and scaled to the root mean square of AdamW's updates (arXiv 2502.16982).
    """

    def init(self, parameters: Arrays) -> OptimizerState:
        """Return the moments before the first step."""
        state = super().init(parameters)
        second = {path: array for path, array in state["second_moment"].items() if not is_block_matrix(path.split("."))}
        return state | {"second_moment": second}

    def factors(self, step: int) -> Arrays:
        """Return the numbers of a step, counted from 0, that `update` needs."""
        momentum = self._config.momentum
        corrections = {
            "gradient_correction": mx.array(1 / (1 - momentum ** (step + 1))),
            "momentum_correction": mx.array(1 / (1 - momentum ** (step + 2))),
        }
        return super().factors(step) | corrections

    def _change(self, path: str, gradient: mx.array, moments: Arrays, factors: Arrays) -> tuple[mx.array, Arrays]:
        if not is_block_matrix(path.split(".")):
            return super()._change(path, gradient, moments, factors)
        momentum = self._config.momentum
        first = (1 - momentum) * gradient + momentum * moments["first_moment"]
        ahead = momentum * (first * factors["momentum_correction"])  # Nesterov's
        ahead = ahead + (1 - momentum) * (gradient * factors["gradient_correction"])
        change = MUON_RMS * math.sqrt(max(gradient.shape)) * orthogonalized(ahead)
        return change, {"first_moment": self._stored(first)}


def make_optimizer(config: OptimizerConfig, num_train_steps: int) -> AdamW:
    """Return the optimizer of the settings. Raises ValueError where the warm-up leaves no step to train."""
    return (Muon if config.name == "muon" else AdamW)(config, num_train_steps)


def orthogonalized(matrix: mx.array) -> mx.array:
    """Return the matrix `[O, I]` with singular values near 1, the smallest less so, by Newton-Schulz steps."""
    a, b, c = _NEWTON_SCHULZ
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x / (mx.sqrt(mx.sum(mx.square(x))) + _NEWTON_SCHULZ_EPS)
    for _ in range(NEWTON_SCHULZ_STEPS):
        squares = x @ x.T
        x = a * x + (b * squares + c * (squares @ squares)) @ x
    return x.T if is_tall else x
