"""A directory that stock mlx-lm has quantized, opened as an artifact.

Its config.json and tensor names are those of transformers, with `quantization` beside them. A matrix of 2 bits is
ternary where every bias is the negative of its scale and no integer is 3: the format of Ternary-Bonsai. Any other
matrix of 2 bits has been rounded, and is refused. Matrices of more bits are dequantized.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.packing import pack_blocks, unpack_affine
from jaxlm.common.architecture.parameters import Parameter, StoredTensor, parameters, scale_name, stored_tensors
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
from jaxlm.common.formats.hub_config import read_hub_config
from jaxlm.common.formats.mlx_affine import AffineForm, affine_form, dequantize_affine
from jaxlm.common.recognition.scales import (
    common_scale_dtype,
    common_scale_per,
    recognize_scales,
    scales_of_grid,
)

QUANTIZATION = "quantization"
# mlx-lm writes the same object under the name that the hub looks for.
QUANTIZATION_COPY = "quantization_config"
_SCALES, _BIASES, _WEIGHT = ".scales", ".biases", ".weight"
_FLOATS = ("float32", "bfloat16", "float16")
# Codes decoded at a time.
_CHUNK = 2**22


@dataclass(frozen=True)
class _Matrix:
    """A quantized matrix in the files."""

    path: str
    form: AffineForm
    shape: tuple[int, int]


def is_quantized_mlx(content: Mapping[str, Any]) -> bool:
    """Return True if a config.json is that of a directory that stock mlx-lm has quantized."""
    quantization = content.get(QUANTIZATION)
    return isinstance(quantization, dict) and "bits" in quantization and "model_file" not in content


def open_quantized_mlx(directory: Path, log: Callable[[str], None] = lambda line: None) -> Artifact:
    """Open a quantized MLX directory: packed where all linears of the blocks are ternary, otherwise dense floats.

    `log` receives a line where matrices are dequantized. Raises ValueError naming the key or the tensor that is not as
    expected, and on a matrix of 2 bits that is not ternary.
    """
    content = read_config(directory)
    files = open_tensors(directory, log)
    with named_faults(directory / CONFIG):
        matrices = _matrices(files, content[QUANTIZATION])
        plain = {key: value for key, value in content.items() if key not in (QUANTIZATION, QUANTIZATION_COPY)}
        names = [name for name in files if not name.endswith((_SCALES, _BIASES))]
        config = read_hub_config(plain, names).model
    found = {name: files.stored()[name] for name in names}
    found |= {name: StoredTensor(name, matrix.shape, "float32") for name, matrix in matrices.items()}
    check_layers(directory, found, config)
    check_tensors(directory, found, stored_tensors(config, "latent"), _are_floats)
    rest = {tensor.dtype for name, tensor in found.items() if name not in matrices}
    float_dtype = "bfloat16" if rest == {"bfloat16"} else "float32"
    scales = {name: _ternary_scales(directory, files, each) for name, each in matrices.items() if each.form.bits == 2}
    kind = "latent"
    if _linears(config) <= set(scales):
        config, kind = _ternary_config(config, scales), "packed"
    stored = stored_tensors(config, kind, float_dtype)
    ternary = {scale_name(p.name): p for p in parameters(config) if kind == "packed" and p.storage == "ternary"}
    tensors = _Tensors(directory, files, matrices, ternary, config, stored)
    _log_dequantized(directory, [each for name, each in matrices.items() if scale_name(name) not in ternary], log)
    return Artifact(config, kind, float_dtype, tensors, stored)


def _matrices(files: ModelTensors, quantization: Mapping[str, Any]) -> dict[str, _Matrix]:
    """Return every quantized matrix by the name of its weight. Raises ValueError where shapes do not fit the form."""
    affine_form(quantization, "")  # raises on what holds for all
    on_disk, found = files.stored(), {}
    for path in (name.removesuffix(_SCALES) for name in files if name.endswith(_SCALES)):
        form = affine_form(quantization, path)
        parts = [on_disk.get(path + ending) for ending in (_WEIGHT, _SCALES, _BIASES)]
        for ending, part in zip((_WEIGHT, _SCALES, _BIASES), parts, strict=True):
            if part is None:
                raise ValueError(f"missing tensor {path}{ending}, which {path}{_SCALES} needs")
        words, scales, biases = (part for part in parts if part is not None)
        if words.dtype != "uint32" or len(words.shape) != 2:
            raise ValueError(
                f"tensor {words.name}: found {words.dtype} {list(words.shape)}, expected uint32 [rows, words]"
            )
        rows, columns = words.shape[0], form.columns(words.shape[1])
        if columns % form.group_size or form.words(columns) != words.shape[1]:
            raise ValueError(
                f"tensor {words.name}: found rows of {columns:,} numbers, expected a multiple of group_size "
                f"{form.group_size}"
            )
        for each in (scales, biases):
            expected = (rows, columns // form.group_size)
            if each.shape != expected or each.dtype not in _FLOATS:
                raise ValueError(
                    f"tensor {each.name}: found {each.dtype} {list(each.shape)}, expected floats {list(expected)} for "
                    f"{form.bits} bits and group_size {form.group_size}"
                )
        found[words.name] = _Matrix(path, form, (rows, columns))
    return found


def _are_floats(found: StoredTensor, expected: StoredTensor) -> bool:
    return found.dtype in _FLOATS and found.shape == expected.shape


def _ternary_scales(directory: Path, files: ModelTensors, matrix: _Matrix) -> np.ndarray:
    """Return the scales `[R, k]` of a matrix of 2 bits. Raises ValueError where its biases are not their negatives."""
    scales, biases = files[matrix.path + _SCALES], files[matrix.path + _BIASES]
    if (differs := biases != -scales).any():
        row, group = np.argwhere(differs)[0]
        raise ValueError(
            f"{directory}: {matrix.path}: found bias {biases[row, group]:.4g} with scale {scales[row, group]:.4g}, "
            "expected the negative of the scale: its 2 bits are four levels of rounded weights, not ternary; use the "
            "model that it was quantized from, or write its floats with mlx_lm.convert --dequantize"
        )
    if not (np.isfinite(scales) & (scales >= 0)).all():
        wrong = scales[~(np.isfinite(scales) & (scales >= 0))][0]
        raise ValueError(f"{directory}: {matrix.path}{_SCALES}: found {wrong:.4g}, expected a positive number")
    return scales


def _linears(config: ModelConfig) -> set[str]:
    """Return the names of the matrices that are ternary in any ternary model."""
    ternary = replace(config, linear="ternary")
    return {parameter.name for parameter in parameters(ternary) if parameter.storage == "ternary"}


def _ternary_config(config: ModelConfig, scales: Mapping[str, np.ndarray]) -> ModelConfig:
    shapes = {parameter.name: parameter.shape for parameter in parameters(config)}
    recognized = [recognize_scales(each, (shapes[name][0], shapes[name][1])) for name, each in scales.items()]
    scale_per = common_scale_per(recognized) or "group:32"
    return replace(
        config,
        linear="ternary",
        scale_per=scale_per,
        scale_dtype=common_scale_dtype(recognized, scale_per),
        activation_bits=None,
        embedding="ternary" if "model.embed_tokens.weight" in scales else "float",
        ternary_head="lm_head.weight" in scales and not config.tie_word_embeddings,
    )


def _log_dequantized(directory: Path, matrices: list[_Matrix], log: Callable[[str], None]) -> None:
    if matrices:
        bits = ", ".join(map(str, sorted({matrix.form.bits for matrix in matrices})))
        log(
            f"{directory}: mlx-lm has rounded {len(matrices)} matrices to {bits} bits, such as {matrices[0].path}: "
            "read as the floats that they stand for"
        )


def _code_blocks(words: np.ndarray, scales: np.ndarray, columns: int) -> Iterator[np.ndarray]:
    """Yield the codes of a matrix as blocks of rows, which bound the memory. A scale of 0 is of zeros."""
    step = max(1, _CHUNK // columns)
    for start in range(0, len(words), step):
        part = scales[start : start + step]
        codes = unpack_affine(words[start : start + step], columns)
        codes.reshape(*part.shape, -1)[part == 0] = 0
        yield codes


class _Tensors(Mapping[str, np.ndarray]):
    """The tensors of an artifact, each decoded on use. Raises ValueError on a code of value 3."""

    def __init__(
        self,
        directory: Path,
        files: ModelTensors,
        matrices: Mapping[str, _Matrix],
        ternary: Mapping[str, Parameter],
        config: ModelConfig,
        stored: tuple[StoredTensor, ...],
    ):
        # `ternary` maps the name of the scale of each ternary parameter to the parameter.
        self._directory, self._files, self._matrices, self._config = directory, files, matrices, config
        self._ternary = ternary
        self._names = dict.fromkeys(tensor.name for tensor in stored)

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        if name in self._ternary:
            return self._scales(self._ternary[name])
        if name not in self._matrices:
            return self._files[name]
        matrix = self._matrices[name]
        words, scales = self._files[name], self._files[matrix.path + _SCALES]
        if scale_name(name) not in self._ternary:
            return dequantize_affine(words, scales, self._files[matrix.path + _BIASES], matrix.form)
        try:
            return pack_blocks(_code_blocks(words, scales, matrix.shape[1]), matrix.shape)
        except ValueError as error:
            raise ValueError(f"{self._directory}: {name}: {error}; the model is not ternary") from error

    def _scales(self, parameter: Parameter) -> np.ndarray:
        (rows, columns), form = parameter.shape, self._config.ternary_form
        scales = self._files[self._matrices[parameter.name].path + _SCALES]
        return scales_of_grid(scales, form.grid(rows, columns)).reshape(form.stored_shape(rows, columns))

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
