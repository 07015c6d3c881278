"""The tensors of an artifact with adapters added to them, one at a time."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from mlx_lm.tuner.lora import LoRALinear

from jaxlm.common.architecture.parameters import Parameter, parameters, scale_name
from jaxlm.common.architecture.ternary import nearest_codes, pack, quantize_weight, unpack
from jaxlm.common.artifact.artifact import Artifact
from mlxlm.model.language_model import LanguageModel
from mlxlm.model.layers import to_numpy


@dataclass(frozen=True)
class Adapter:
    """A low-rank update: A `[in, r]`, B `[r, out]` and what their product is multiplied by."""

    a: np.ndarray
    b: np.ndarray
    scale: float

    @property
    def update(self) -> np.ndarray:
        """What is added to the weight, float32 `[out, in]`."""
        return (self.a @ self.b).T * np.float32(self.scale)


def adapters_of(model: LanguageModel) -> dict[str, Adapter]:
    """The adapters of a model, by the name of the parameter that they belong to."""
    return {
        f"{path}.weight": Adapter(to_numpy(module.lora_a), to_numpy(module.lora_b), module.scale)
        for path, module in model.named_modules()
        if isinstance(module, LoRALinear)
    }


@dataclass(frozen=True)
class LayerMerge:
    """What an update did to one weight."""

    name: str
    weights: int
    relative_update: float
    """Norm of the update over that of the weight, as floats."""
    codes_flipped: int | None
    """Codes that are others now; None of a dense weight."""


class MergedTensors:
    """Reads the tensors of an artifact with adapters added, in its own kind, and notes in `layers` what that did.

    Latent weights take an update in as floats. Of a packed model the codes are brought to where codes x scale + update
    is nearest, and the scale stays: codes x scale, ternarised anew, would have a smaller one.
    """

    def __init__(self, artifact: Artifact, adapters: Mapping[str, Adapter]):
        self.layers: list[LayerMerge] = []
        self._artifact = artifact
        self._adapted = {
            parameter.name: (parameter, adapters[parameter.attribute])
            for parameter in parameters(artifact.config)
            if parameter.attribute in adapters
        }

    @property
    def packed_names(self) -> list[str]:
        """The adapted weights of which only codes and scale are there."""
        is_packed = self._artifact.kind == "packed"
        return [name for name, (parameter, _) in self._adapted.items() if is_packed and parameter.storage == "ternary"]

    def read(self, name: str) -> np.ndarray:
        """A tensor of the merged artifact, by the name and in the form that the artifact has it.

        Raises ValueError where an adapter is not finite.
        """
        stored = self._artifact.tensors[name]
        if name not in self._adapted:
            return stored
        parameter, adapter = self._adapted[name]
        update = adapter.update
        if not np.isfinite(update).all():
            raise ValueError(f"{name}: found an adapter with a number that is not finite; its training has diverged")
        merge = self._merge_codes if name in self.packed_names else self._merge_floats
        return merge(parameter, stored, update)

    def _merge_floats(self, parameter: Parameter, weight: np.ndarray, update: np.ndarray) -> np.ndarray:
        merged, flipped = weight + update, None
        if parameter.storage == "ternary":
            before, after = (quantize_weight(each, self._artifact.config.scale_dtype, np) for each in (weight, merged))
            flipped = int(np.sum(before[0] != after[0]))
        self._note(parameter, weight, update, flipped)
        return merged

    def _merge_codes(self, parameter: Parameter, packed: np.ndarray, update: np.ndarray) -> np.ndarray:
        codes = unpack(packed, parameter.shape[0])
        scale = self._artifact.tensors[scale_name(parameter.name)]
        weight = codes * scale
        merged = nearest_codes(weight + update, scale, np)
        self._note(parameter, weight, update, int(np.sum(codes != merged)))
        return pack(merged)

    def _note(self, parameter: Parameter, weight: np.ndarray, update: np.ndarray, flipped: int | None) -> None:
        relative = float(np.linalg.norm(update) / max(np.linalg.norm(weight), np.finfo(np.float32).tiny))
        self.layers.append(LayerMerge(parameter.attribute, parameter.size, relative, flipped))
