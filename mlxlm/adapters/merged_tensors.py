"""The tensors of an artifact with adapters merged into them, one at a time."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from mlx_lm.tuner.lora import LoRALinear

from jaxlm.common.architecture.packing import pack, unpack
from jaxlm.common.architecture.parameters import Parameter, parameters, scale_name
from jaxlm.common.architecture.ternary import dequantize, nearest_codes, quantize_weight
from jaxlm.common.artifact.artifact import Artifact
from mlxlm.model.language_model import LanguageModel
from mlxlm.model.layers import to_numpy


@dataclass(frozen=True)
class Adapter:
    """A low-rank update of a weight: A `[in, r]`, B `[r, out]` and the LoRA scale."""

    a: np.ndarray
    b: np.ndarray
    scale: float

    @property
    def update(self) -> np.ndarray:
        """The matrix to add to the weight: scale * (A B)^T, float32 `[out, in]`."""
        return (self.a @ self.b).T * np.float32(self.scale)


def adapters_of(model: LanguageModel) -> dict[str, Adapter]:
    """Return the adapters of a model, by the name of the parameter that they belong to."""
    return {
        f"{path}.weight": Adapter(to_numpy(module.lora_a), to_numpy(module.lora_b), module.scale)
        for path, module in model.named_modules()
        if isinstance(module, LoRALinear)
    }


@dataclass(frozen=True)
class LayerMerge:
    """The change of one weight by its adapter."""

    name: str
    weights: int
    """Numbers in the matrix."""
    relative_update: float
    """Norm of the update divided by the norm of the weight, both as floats."""
    codes_flipped: int | None
    """Number of codes that changed; None for a dense weight."""


class MergedTensors:
    """A reader of an artifact's tensors with adapters merged in; it records the changes in `layers`.

    The kind of the artifact stays. Latent and dense weights are added as floats. For a packed weight the new codes are
    the ones nearest to codes x scale + update, and the scale stays: ternarising codes x scale again would shrink it.
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
        """The adapted weights that are stored only as codes and scale."""
        is_packed = self._artifact.kind == "packed"
        return [name for name, (parameter, _) in self._adapted.items() if is_packed and parameter.storage == "ternary"]

    def read(self, name: str) -> np.ndarray:
        """Return a tensor of the merged artifact, in the form that the artifact stores it.

        Raises ValueError if an adapter is not finite.
        """
        stored = self._artifact.tensors[name]
        if name not in self._adapted:
            return stored
        parameter, adapter = self._adapted[name]
        update = adapter.update
        if not np.isfinite(update).all():
            raise ValueError(
                f"{name}: found an adapter with infinite or NaN numbers, expected finite ones; its training diverged: "
                "train again with a lower learning rate"
            )
        merge = self._merge_codes if name in self.packed_names else self._merge_floats
        return merge(parameter, stored, update)

    def _merge_floats(self, parameter: Parameter, weight: np.ndarray, update: np.ndarray) -> np.ndarray:
        merged, flipped = weight + update, None
        if parameter.storage == "ternary":
            before, after = (quantize_weight(each, self._artifact.config.ternary_form, np) for each in (weight, merged))
            flipped = int(np.sum(before[0] != after[0]))
        self._note(parameter, weight, update, flipped)
        return merged

    def _merge_codes(self, parameter: Parameter, packed: np.ndarray, update: np.ndarray) -> np.ndarray:
        codes = unpack(packed, parameter.shape[0])
        grid = self._artifact.config.ternary_form.grid(*parameter.shape)
        scale = self._artifact.tensors[scale_name(parameter.name)].reshape(grid)
        weight = dequantize(codes, scale, np)
        merged = nearest_codes(weight + update, scale, np)
        self._note(parameter, weight, update, int(np.sum(codes != merged)))
        return pack(merged)

    def _note(self, parameter: Parameter, weight: np.ndarray, update: np.ndarray, flipped: int | None) -> None:
        relative = float(np.linalg.norm(update) / max(np.linalg.norm(weight), np.finfo(np.float32).tiny))
        self.layers.append(LayerMerge(parameter.attribute, parameter.size, relative, flipped))
