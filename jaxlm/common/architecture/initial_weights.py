"""The initial weights of a model: one rule for the JAX modules and for artifacts that numpy writes."""

from collections.abc import Callable

import numpy as np

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.parameters import parameters
from jaxlm.common.architecture.rational import RATIONAL, silu_coefficients


def initial_std(config: ModelConfig, module: str) -> float:
    """Return the standard deviation of a matrix at the start, by the last name of its module."""
    if module == "embed_tokens":
        return config.embedding_range
    if module in ("o_proj", "down_proj"):
        # They write to the residual stream, which sums the outputs of 2 num_layers of them (GPT-2's rule).
        return config.initializer_range / (2 * config.num_layers) ** 0.5
    return config.initializer_range


def initial_weights(config: ModelConfig, seed: int) -> Callable[[str], np.ndarray]:
    """Return a function from the name of a latent artifact's tensor to its float32 array, drawn when called.

    The distributions are those that training starts from; the numbers are not. Each tensor has a random stream of its
    own, so the order of calls does not matter.
    """
    table = {parameter.name: (index, parameter) for index, parameter in enumerate(parameters(config))}

    def read(name: str) -> np.ndarray:
        index, parameter = table[name]
        module, shape = parameter.path[-2], parameter.shape
        if "norm" in module:
            return np.ones(shape, np.float32)
        if module == "lower_bounds" or parameter.path[-1] == "bias":
            return np.zeros(shape, np.float32)
        if module == RATIONAL:
            return silu_coefficients(parameter.path[-1])
        weight = np.random.default_rng((seed, index)).standard_normal(shape, np.float32)
        weight *= np.float32(initial_std(config, module))
        return weight

    return read
