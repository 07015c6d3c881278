"""A model's weights one at a time, from a parameter tree in memory or from an artifact on disk."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.parameters import Parameter, parameters, scale_name
from jaxlm.common.architecture.ternary import unpack
from jaxlm.common.artifact.artifact import Artifact
from jaxlm.model.layers import QuantizedRows
from jaxlm.ops.ternary_linear import Params, TernaryWeight, ternarize_weight
from jaxlm.parallel.distributed import to_host

Weight = np.ndarray | TernaryWeight | QuantizedRows
# The weight of one parameter, so of one layer; read on every call.
Weights = Callable[[Parameter], Weight]


def tree_weights(params: Params) -> Weights:
    """Weights of a parameter tree, whose layers are stacked."""
    flat = flatten_dict(params)

    def weight(parameter: Parameter) -> Weight:
        layer = parameter.layer
        return jax.tree.map(lambda leaf: to_host(leaf if layer is None else leaf[layer]), flat[parameter.path])

    return weight


def artifact_weights(artifact: Artifact) -> Weights:
    """Weights of an artifact: floats, and where it is packed ternary and 8-bit ones."""
    tensors = artifact.tensors

    def weight(parameter: Parameter) -> Weight:
        stored = tensors[parameter.name]
        if artifact.kind == "latent" or parameter.storage == "float":
            return stored
        scale = tensors[scale_name(parameter.name)]
        if parameter.storage == "int8":
            return QuantizedRows(stored, scale)
        return TernaryWeight(unpack(stored, parameter.shape[0]), scale.reshape(()))

    return weight


def artifact_params(artifact: Artifact) -> Params:
    """The parameter tree of an artifact: float leaves, and ternary ones where it is packed."""
    return stack_weights(artifact_weights(artifact), parameters(artifact.config))


def ternary_weights(weights: Weights, config: ModelConfig) -> Weights:
    """The same weights with latent matrices quantized by training's own function where the config says ternary."""
    quantize = jax.jit(ternarize_weight, static_argnums=1)

    def weight(parameter: Parameter) -> Weight:
        found = weights(parameter)
        if parameter.storage != "ternary" or isinstance(found, TernaryWeight):
            return found
        return jax.tree.map(np.asarray, quantize(found, config.scale_dtype))

    return weight


def stack_weights(weights: Weights, parameters: Iterable[Parameter]) -> Params:
    """The parameter tree of some parameters: the layers of a stacked leaf together, in the order given."""
    groups: dict[tuple[str, ...], list[Parameter]] = defaultdict(list)
    for parameter in parameters:
        groups[parameter.path].append(parameter)
    return unflatten_dict({path: _leaf(weights, group) for path, group in groups.items()})


def _leaf(weights: Weights, group: list[Parameter]) -> Any:
    first = weights(group[0])
    if group[0].layer is None:
        return jax.tree.map(jnp.asarray, first)
    stacked = jax.tree.map(lambda array: np.empty((len(group), *array.shape), array.dtype), first)
    for place, parameter in enumerate(group):
        jax.tree.map(lambda whole, layer, place=place: np.copyto(whole[place, ...], layer), stacked, weights(parameter))
    return jax.tree.map(jnp.asarray, stacked)
