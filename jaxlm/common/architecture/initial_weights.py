"""What a model's weights are before training: one rule for the JAX modules and for artifacts that numpy makes."""

from collections.abc import Callable

import numpy as np

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.parameters import parameters


def initial_std(config: ModelConfig, module: str) -> float:
    """Standard deviation of the normal distribution that a matrix is drawn from, by the last name of its module."""
    if module == "embed_tokens":
        return config.embedding_range
    if module in ("o_proj", "down_proj"):
        # They write into the residual stream, which 2 num_layers of them add up in (GPT-2's rule).
        return config.initializer_range / (2 * config.num_layers) ** 0.5
    return config.initializer_range


def initial_weights(config: ModelConfig, seed: int) -> Callable[[str], np.ndarray]:
    """A function from the name of a latent artifact's tensor to its float32 array, drawn on use.

    The same distributions as training starts from, but not the same numbers. Each tensor has a stream of its own, so
    they may be asked for in any order.
    """
    table = {parameter.name: (place, parameter) for place, parameter in enumerate(parameters(config))}

    def read(name: str) -> np.ndarray:
        place, parameter = table[name]
        module, shape = parameter.path[-2], parameter.shape
        if "norm" in module:
            return np.ones(shape, np.float32)
        if module == "lower_bounds":
            return np.zeros(shape, np.float32)
        weight = np.random.default_rng((seed, place)).standard_normal(shape, np.float32)
        weight *= np.float32(initial_std(config, module))
        return weight

    return read
