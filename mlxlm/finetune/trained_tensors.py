"""The tensors of a fine-tuned model, in the form of the artifact that it was made from."""

from collections.abc import Mapping

import mlx.core as mx
import numpy as np

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.packing import pack, unpack
from jaxlm.common.architecture.parameters import Kind, Parameter, parameters, scale_name
from jaxlm.common.architecture.ternary import quantize_rows, quantize_weight
from jaxlm.common.artifact.artifact import Artifact
from mlxlm.model.layers import to_numpy


class TrainedTensors:
    """A reader of the tensors: those that were trained, and the source's for all others.

    A latent or dense source gives latent tensors, a packed one packed ones; then `codes` and `changed` count the
    ternary codes that were trained, and those that differ from the source's.
    """

    def __init__(self, source: Artifact, config: ModelConfig, trained: Mapping[str, mx.array]):
        self.kind: Kind = source.kind
        self.codes = self.changed = 0
        self._source, self._config, self._trained = source, config, trained
        self._parameters = {parameter.name: parameter for parameter in parameters(config)}
        self._scales: dict[str, np.ndarray] = {}

    def read(self, name: str) -> np.ndarray:
        """Return a tensor by its name in an artifact; the scales of a matrix after its weights."""
        if name in self._scales:
            return self._scales.pop(name)
        parameter = self._parameters.get(name)
        if parameter is None or parameter.attribute not in self._trained:
            return self._source.tensors[name]
        weight = to_numpy(self._trained[parameter.attribute])
        return weight if self.kind == "latent" or parameter.storage == "float" else self._packed(parameter, weight)

    def _packed(self, parameter: Parameter, weight: np.ndarray) -> np.ndarray:
        if parameter.storage == "int8":
            codes, self._scales[scale_name(parameter.name)] = quantize_rows(weight, np)
            return codes
        codes, scale = quantize_weight(weight, self._config.ternary_form, np)
        stored_shape = self._config.ternary_form.stored_shape(*parameter.shape)
        self._scales[scale_name(parameter.name)] = scale.reshape(stored_shape)
        before = unpack(self._source.tensors[parameter.name], parameter.shape[0])
        self.codes, self.changed = self.codes + codes.size, self.changed + int(np.sum(codes != before))
        return pack(codes)
