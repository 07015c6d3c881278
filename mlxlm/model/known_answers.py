"""The known-answer test of MLX: the parts of fine-tuning on the default device, compared with numpy.

As `jaxlm.training.known_answers`; the numbers are those of `jaxlm.common.known_answers.references`.
"""

import functools
import importlib.metadata
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from jaxlm.common.architecture.packing import pack_affine
from jaxlm.common.architecture.ternary import TernaryForm, quantize_activation, quantize_weight
from jaxlm.common.known_answers import references
from jaxlm.common.known_answers.comparison import Answer, check_answers
from mlxlm.model.linear_recurrence import linear_recurrence
from mlxlm.model.ternary_linear import integer_product, ternary_linear

# Differences that rounding explains, in float32.
_TOLERANCE = 2e-5


@functools.cache
def check_known_answers() -> int:
    """Compare the parts of fine-tuning with numpy's. Returns the number of arrays that were compared.

    Raises WrongAnswerError (a ValueError), which names the parts that are wrong and the version of MLX. A process
    checks its device once.
    """
    name = f"MLX {importlib.metadata.version('mlx')} on {mx.default_device()}"
    remedy = "Do not train with it: install another version of mlx, or train on another device"
    return check_answers([*ternary_layer(), *loss(), *recurrence()], name, remedy)


def ternary_layer() -> Iterator[Answer]:
    """Yield a ternary layer of a packed matrix and its gradient; its integers are exact."""
    rng = np.random.default_rng(1)
    # Far from the ties of rounding, whose side is a matter of the last bit.
    steps = rng.integers(-126, 127, (33, 192)) + rng.uniform(-0.2, 0.2, (33, 192))
    steps[:, 0] = 127
    x = (steps / 127).astype(np.float32)
    latent = (rng.standard_normal((96, 192)) * 0.05).astype(np.float32)
    dy = rng.standard_normal((33, 96)).astype(np.float32)
    codes, scale = quantize_weight(mx.array(latent), TernaryForm(), mx)
    packed = mx.array(pack_affine(np.array(codes)))

    def layer(x: mx.array, dy: mx.array) -> Any:
        integers, _ = quantize_activation(x, mx)
        (y,), (dx,) = mx.vjp(lambda x: ternary_linear(x, packed, scale.reshape(1), 8), [x], [dy])
        return integers, integer_product(integers, packed), y, dx

    found = (codes, scale, *mx.compile(layer)(mx.array(x), mx.array(dy)))
    right = references.ternary_linear(x, latent, dy.astype(np.float64))
    for (name, expected), array in zip(right.items(), found, strict=False):  # a packed matrix has no dW
        is_float = name in ("outputs", "dx")
        yield Answer("ternary layer", name, np.array(array), expected, _TOLERANCE if is_float else 0)


def loss() -> Iterator[Answer]:
    """Yield the loss of a head and its gradients."""
    rng = np.random.default_rng(2)
    x, weight = rng.standard_normal((128, 48)).astype(np.float32), rng.standard_normal((320, 48)).astype(np.float32)
    targets, mask = rng.integers(0, 320, 128), (rng.random(128) < 0.8).astype(np.float32)

    def nats(x: mx.array, weight: mx.array) -> mx.array:
        return mx.sum(nn.losses.cross_entropy(x @ weight.T, mx.array(targets)) * mx.array(mask))

    found, gradients = mx.compile(mx.value_and_grad(nats, argnums=(0, 1)))(mx.array(x), mx.array(weight))
    right = references.cross_entropy(x.astype(np.float64), weight.astype(np.float64), targets, mask)
    names = ("nats", "gradient of its input", "gradient of the head")
    for name, array, expected in zip(names, (found, *gradients), right, strict=True):
        yield Answer("loss", name, np.array(array), expected, _TOLERANCE)


def recurrence() -> Iterator[Answer]:
    """Yield the states of a linear recurrence and their gradients."""
    rng = np.random.default_rng(4)
    decays = rng.uniform(0.5, 1, (2, 70, 48)).astype(np.float32)
    updates, d_states = rng.standard_normal((2, 2, 70, 48)).astype(np.float32)
    initial = rng.standard_normal((2, 48)).astype(np.float32)
    inputs = [mx.array(array) for array in (decays, updates, initial)]
    (states,), gradients = mx.vjp(linear_recurrence, inputs, [mx.array(d_states)])
    arguments = [array.astype(np.float64) for array in (decays, updates, initial, d_states)]
    right = references.recurrence(*arguments[:3]), *references.recurrence_gradients(*arguments)
    names = ("states", "gradient of decays", "gradient of updates", "gradient of the initial state")
    for name, array, expected in zip(names, (states, *gradients), right, strict=True):
        yield Answer("linear recurrence", name, np.array(array), expected, _TOLERANCE)
