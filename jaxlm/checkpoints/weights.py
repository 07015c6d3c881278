"""The weights of a model, read one at a time from a parameter tree in memory or from an artifact on disk."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.packing import unpack
from jaxlm.common.architecture.parameters import Parameter, parameters, scale_name
from jaxlm.common.artifact.artifact import Artifact
from jaxlm.model.layers import QuantizedRows
from jaxlm.ops.ternary_linear import Params, TernaryWeight, ternarize, ternarize_weight
from jaxlm.parallel.distributed import to_host

Weight = np.ndarray | TernaryWeight | QuantizedRows
# Function from a parameter (so one layer of a stacked leaf) to its weight, which it reads on every call.
Weights = Callable[[Parameter], Weight]


def tree_weights(params: Params) -> Weights:
    """Return the weights of a parameter tree, whose layers are stacked. Each is copied to the host."""
    flat = flatten_dict(params)

    def weight(parameter: Parameter) -> Weight:
        layer = parameter.layer
        return jax.tree.map(lambda leaf: to_host(leaf if layer is None else leaf[layer]), flat[parameter.path])

    return weight


def artifact_weights(artifact: Artifact) -> Weights:
    """Return the weights of an artifact: floats, and of a packed artifact ternary and int8 weights too."""
    tensors, form = artifact.tensors, artifact.config.ternary_form

    def weight(parameter: Parameter) -> Weight:
        stored = tensors[parameter.name]
        if artifact.kind == "latent" or parameter.storage == "float":
            return stored
        scale = tensors[scale_name(parameter.name)]
        if parameter.storage == "int8":
            return QuantizedRows(stored, scale)
        return TernaryWeight(
            unpack(stored, parameter.shape[0]), scale.reshape(form.grid(*parameter.shape)), form.activation_bits
        )

    return weight


def artifact_params(artifact: Artifact) -> Params:
    """Return the parameter tree of an artifact: float leaves, and of a packed artifact ternary and int8 leaves too."""
    return stack_weights(artifact_weights(artifact), parameters(artifact.config))


def frozen_params(artifact: Artifact) -> Params:
    """Return `artifact_params` of a model that is not trained: its latent ternary matrices are quantized once."""
    params = artifact_params(artifact)
    if artifact.kind == "latent" and artifact.config.has_packed_form:
        params = jax.jit(ternarize, static_argnums=1)(params, artifact.config)
    return params


def ternary_weights(weights: Weights, config: ModelConfig) -> Weights:
    """Return the same weights with every ternary matrix quantized by the compiled function of training."""
    quantize = jax.jit(ternarize_weight, static_argnums=1)

    def weight(parameter: Parameter) -> Weight:
        latent = weights(parameter)
        if parameter.storage != "ternary" or isinstance(latent, TernaryWeight):
            return latent
        return jax.tree.map(np.asarray, quantize(latent, config.ternary_form))

    return weight


def stack_weights(weights: Weights, parameters: Iterable[Parameter]) -> Params:
    """Return the parameter tree of some parameters, with the layers of a leaf stacked in the order given."""
    groups: dict[tuple[str, ...], list[Parameter]] = defaultdict(list)
    for parameter in parameters:
        groups[parameter.path].append(parameter)
    return unflatten_dict({path: _leaf(weights, group) for path, group in groups.items()})


def _leaf(weights: Weights, group: list[Parameter]) -> Any:
    first = weights(group[0])
    if group[0].layer is None:
        return jax.tree.map(jnp.asarray, first)
    # Filled layer by layer: a list of all layers to stack would need the memory twice.
    stacked = jax.tree.map(lambda array: np.empty((len(group), *array.shape), array.dtype), first)
    for index, parameter in enumerate(group):

        def fill(array: np.ndarray, layer: np.ndarray, index: int = index) -> None:
            array[index] = layer

        jax.tree.map(fill, stacked, weights(parameter))
    return jax.tree.map(jnp.asarray, stacked)
