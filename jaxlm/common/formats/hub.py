"""A transformers directory of another program, opened as an artifact: its tensors under our names, in our form."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.packing import CODES_PER_BYTE, check_packed, pack
from jaxlm.common.architecture.parameters import StoredTensor, stored_tensors
from jaxlm.common.architecture.ternary import round_to
from jaxlm.common.artifact.artifact import Artifact
from jaxlm.common.artifact.model_files import (
    CONFIG,
    ModelTensors,
    check_layers,
    check_tensors,
    named_faults,
    open_tensors,
    read_config,
)
from jaxlm.common.formats.hub_config import SUB_NORMS_OF_1BITLLM, read_hub_config

_FLOATS = ("float32", "bfloat16", "float16")
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def open_hub(directory: Path, log: Callable[[str], None] = lambda line: None) -> Artifact:
    """Open a transformers directory: Llama, BitNet (latent or packed), a model of 1bitLLM, or a MatMul-free one.

    Raises ValueError on a config that our model cannot compute, on a tensor that is missing, unexpected or of another
    shape, on a scale that is not a positive number, and on a tied head that differs from the embedding. `log` receives
    a line on files of weights that are not read.
    """
    files = open_tensors(directory, log)
    with named_faults(directory / CONFIG):
        hub = read_hub_config(read_config(directory), files)
    names = _our_names(directory, files, hub.model)
    scales = {
        ours: _scale(directory, theirs, files[theirs], hub.inverted_scales)
        for ours, theirs in names.items()
        if ours.endswith(".weight_scale")
    }
    config = replace(hub.model, scale_dtype="bfloat16") if scales and _are_bfloat16(scales) else hub.model
    on_disk = files.stored()
    found = {ours: on_disk[theirs] for ours, theirs in names.items()}
    floats = {tensor.dtype for name, tensor in found.items() if name not in scales and tensor.dtype in _FLOATS}
    float_dtype = "bfloat16" if floats == {"bfloat16"} else "float32"
    check_layers(directory, found, config)
    stored = stored_tensors(config, hub.kind, float_dtype)
    check_tensors(directory, found, stored, _fits)
    return Artifact(config, hub.kind, float_dtype, _HubTensors(directory, files, names, scales, stored), stored)


def _our_names(directory: Path, files: ModelTensors, config: ModelConfig) -> dict[str, str]:
    """Return our name of each tensor -> its name in the files, without tensors that follow from others."""
    names: dict[str, str] = {}
    for theirs in files:
        ours = theirs
        for old, new in SUB_NORMS_OF_1BITLLM.items():
            if theirs.endswith(old):
                ours = theirs.removesuffix(old) + new
        if ours in names:
            raise ValueError(
                f"{directory}: tensors {names[ours]} and {theirs} are the same parameter, expected one of them"
            )
        if not theirs.endswith(".rotary_emb.inv_freq"):  # rope_theta determines it; old releases stored it
            names[ours] = theirs
    if config.tie_word_embeddings and {_HEAD, _EMBEDDING} <= set(names):
        head, embedding = files.raw(_HEAD), files.raw(_EMBEDDING)
        if head.dtype != embedding.dtype or not np.array_equal(head, embedding):
            raise ValueError(
                f"{directory}: {_HEAD} is not equal to {_EMBEDDING}, but config.json has tie_word_embeddings true; "
                "set it to false for a head of its own"
            )
        del names[_HEAD]
    return names


def _scale(directory: Path, name: str, stored: np.ndarray, inverted: bool) -> np.ndarray:
    """Return a float32 scale that multiplies codes. Raises ValueError where it is not a positive number."""
    scale = stored.astype(np.float32)
    if inverted:
        with np.errstate(all="ignore"):
            scale = np.float32(1) / scale
    if not (np.isfinite(scale) & (scale > 0)).all():
        raise ValueError(f"{directory}: tensor {name}: found {stored.ravel()[:4].tolist()}, expected a positive number")
    return scale


def _are_bfloat16(scales: Mapping[str, np.ndarray]) -> bool:
    return all(np.array_equal(scale, round_to("bfloat16", scale, np)) for scale in scales.values())


def _fits(found: StoredTensor, expected: StoredTensor) -> bool:
    """Return True if a tensor on disk can be converted to the expected one. Floats may be of any width."""
    if found.dtype not in _FLOATS:
        return (found.dtype, found.shape) == (expected.dtype, expected.shape)
    if expected.dtype in _FLOATS:
        return found.shape == expected.shape
    # Transformers also reads the codes of a ternary weight as floats that are not packed.
    return found.shape == (expected.shape[0] * CODES_PER_BYTE, *expected.shape[1:])


class _HubTensors(Mapping[str, np.ndarray]):
    """The tensors under our names, each converted on use. Raises ValueError on codes that are not ternary."""

    def __init__(
        self,
        directory: Path,
        files: ModelTensors,
        names: Mapping[str, str],
        scales: Mapping[str, np.ndarray],
        stored: tuple[StoredTensor, ...],
    ):
        self._directory, self._files, self._names, self._scales = directory, files, names, scales
        self._stored = {tensor.name: tensor for tensor in stored}

    def __getitem__(self, name: str) -> np.ndarray:
        if name in self._scales:
            return self._scales[name]
        array = self._files[self._names[name]]
        if self._stored[name].dtype != "uint8":
            return array
        try:
            return _packed(array)
        except ValueError as error:
            raise ValueError(f"{self._directory}: {name}: {error}") from error

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return some rows of a tensor of floats; the others are not read."""
        return self._files.rows(self._names[name], start, stop)

    def __contains__(self, name: object) -> bool:
        return name in self._stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


def _packed(weight: np.ndarray) -> np.ndarray:
    """Return the packed codes of a ternary weight. The layout of transformers is ours."""
    if weight.dtype == np.uint8:
        check_packed(weight)
        return weight
    if not np.isin(weight, (-1, 0, 1)).all():
        raise ValueError("found weights other than -1, 0 and 1, expected ternary codes, since the weight has a scale")
    return pack(weight.astype(np.int8))
