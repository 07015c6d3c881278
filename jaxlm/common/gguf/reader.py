"""GGUF files of llama.cpp, opened as an artifact: Llama, Qwen2, Qwen3 and BitNet b1.58, ternary codes exact."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.packing import pack_blocks
from jaxlm.common.architecture.parameters import parameters, scale_name, stored_tensors
from jaxlm.common.artifact.artifact import Artifact
from jaxlm.common.gguf.config import activation_bits, from_metadata, nearest_architecture
from jaxlm.common.gguf.file import CHUNK, GGUFFile
from jaxlm.common.gguf.rope import FACTORS, from_rope_factors
from jaxlm.common.gguf.tensors import (
    gguf_name,
    gguf_scale_name,
    is_block_linear,
    separate_rows,
)
from jaxlm.common.gguf.ternary_blocks import ternary_codes, ternary_scales
from jaxlm.common.gguf.types import TERNARY_TYPES, TQ_TYPES, can_dequantize
from jaxlm.common.recognition.scales import (
    common_scale_dtype,
    common_scale_per,
    recognize_scales,
    scales_of_grid,
)

_TABLES = ("model.embed_tokens.weight", "lm_head.weight")
_EMBEDDING, _HEAD = map(gguf_name, _TABLES)
_NOT_TRAINED_AS_TERNARY = "the model was not trained as ternary: open it as dense, with dequantize=True"


def open_gguf(path: str | Path, *, dequantize: bool = False, log: Callable[[str], None] = print) -> Artifact:
    """Open a GGUF file of architecture llama, qwen2, qwen3 or bitnet as an artifact that converts tensors on use.

    Where all linears of the blocks are TQ1_0, TQ2_0 or Q2_0 the model is ternary and the artifact packed, with the
    fewest scales that are exact. Otherwise, and always with `dequantize`, the model is dense and the artifact latent,
    with float32 weights. `log` receives a line on each assumption. Raises ValueError naming the fault of the file, or
    the part of it that our model cannot compute.
    """
    file = GGUFFile(path)
    try:
        config = _dense_config(file, log)
        _check_tensors(file, config)
        matrices = [] if dequantize else _ternary_matrices(file, config, log)
        if matrices:
            config = _ternary_config(file, config, matrices, log)
    except ValueError as error:
        raise ValueError(f"{file.path}: {error}") from error
    kind = "packed" if matrices else "latent"
    tensors = _Tensors(file, config, matrices)
    return Artifact(config, kind, "float32", tensors, stored_tensors(config, kind), file.metadata)


class _Tensors(Mapping[str, np.ndarray]):
    """The tensors of an artifact by name, each converted from a GGUF file on use."""

    def __init__(self, file: GGUFFile, config: ModelConfig, matrices: Sequence[str]):
        # `matrices` are the ternary ones; a latent model has none.
        self._file = file
        self._config = config
        self._scales = {scale_name(name): name for name in matrices}
        stored = stored_tensors(config, "packed" if matrices else "latent")
        self._names = dict.fromkeys(tensor.name for tensor in stored)

    def __getitem__(self, name: str) -> np.ndarray:
        if name in self._scales:
            return _stored_scales(self._file, self._config, self._scales[name])
        if name not in self._names:
            raise KeyError(name)
        if scale_name(name) in self._scales:
            return self._packed(name)
        weight = self._file.read(gguf_name(name))
        if is_block_linear(name) and gguf_scale_name(name) in self._file.tensors:
            weight = weight * self._file.read(gguf_scale_name(name))
        return separate_rows(weight, name, self._config)

    def _packed(self, name: str) -> np.ndarray:
        tensor = self._file.tensors[gguf_name(name)]
        encoded = self._file.blocks(gguf_name(name))
        # Rows that change places are read at once; they are those of queries and keys, never of a table.
        step = len(encoded) if name.endswith(("q_proj.weight", "k_proj.weight")) else max(1, CHUNK // tensor.shape[1])
        parts = (encoded[start : start + step] for start in range(0, len(encoded), step))
        codes = (separate_rows(ternary_codes(part, tensor.type), name, self._config) for part in parts)
        try:
            return pack_blocks(codes, tensor.shape)
        except ValueError as error:
            raise ValueError(f"{self._file.path}: tensor {gguf_name(name)}: {error}") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _dense_config(file: GGUFFile, log: Callable[[str], None]) -> ModelConfig:
    if _EMBEDDING not in file.tensors:
        raise ValueError(f"missing tensor {_EMBEDDING}")
    vocab_size = file.tensors[_EMBEDDING].shape[0]
    config = from_metadata(file.metadata, vocab_size=vocab_size, has_head=_HEAD in file.tensors, log=log)
    if FACTORS in file.tensors:
        config = _with_factors(file, config)
    if config.num_layers > len(file.tensors):
        raise ValueError(f"found {len(file.tensors):,} tensors, too few for block_count {config.num_layers:,}")
    return config


def _with_factors(file: GGUFFile, config: ModelConfig) -> ModelConfig:
    """Return the model with the rotary scaling of the file's tensor of factors."""
    factors = file.read(FACTORS)
    is_alone = nearest_architecture(config) == "llama" and config.rope_scaling is None
    if not is_alone or factors.shape != (config.head_dim // 2,):
        raise ValueError(
            f"unexpected tensor {FACTORS}, {list(factors.shape)}; expected one of {config.head_dim // 2} factors in "
            "architecture llama, without rope.scaling.factor"
        )
    return replace(config, rope_scaling=from_rope_factors(factors, config.head_dim, config.rope_theta))


def _check_tensors(file: GGUFFile, config: ModelConfig) -> None:
    names = [parameter.name for parameter in parameters(config)]
    expected = {gguf_name(parameter.name): parameter.shape for parameter in parameters(config)}
    for name, shape in expected.items():
        if name not in file.tensors:
            raise ValueError(f"missing tensor {name}, {list(shape)}")
    expected |= {gguf_scale_name(name): (1,) for name in names if is_block_linear(name)}
    for name, tensor in file.tensors.items():
        if name == FACTORS:
            continue
        if name not in expected:
            raise ValueError(
                f"unexpected tensor {name}; our models have the tensors of llama, qwen2, qwen3 and bitnet only, "
                "without experts, and biases of q, k and v in qwen2 alone"
            )
        if tensor.shape != expected[name]:
            raise ValueError(f"tensor {name}: found {list(tensor.shape)}, expected {list(expected[name])}")
        if not can_dequantize(tensor.type):
            raise ValueError(f"tensor {name}: found type {tensor.type.name}, which the gguf library cannot dequantize")


def _ternary_matrices(file: GGUFFile, config: ModelConfig, log: Callable[[str], None]) -> list[str]:
    """Return the names of the ternary matrices; none where a linear of the blocks is not ternary."""

    def is_ternary(name: str) -> bool:
        return file.tensors[gguf_name(name)].type in TERNARY_TYPES

    linears = [parameter.name for parameter in parameters(config) if is_block_linear(parameter.name)]
    others = [name for name in linears if not is_ternary(name)]
    if others and (config.sub_norm or len(others) < len(linears)):
        found = file.tensors[gguf_name(others[0])].type.name
        log(f"{gguf_name(others[0])} is {found}: the model is read as dense, not as ternary")
    tables = [name for name in _TABLES if gguf_name(name) in file.tensors and is_ternary(name)]
    return [] if others else [*linears, *tables]


def _ternary_config(
    file: GGUFFile, config: ModelConfig, matrices: Sequence[str], log: Callable[[str], None]
) -> ModelConfig:
    shapes = {parameter.name: parameter.shape for parameter in parameters(config)}
    found = []
    for name in matrices:
        rows, columns = shapes[name]
        matrix = recognize_scales(_block_scales(file, config, name), (rows, columns))
        if matrix.row_scales is None and file.tensors[gguf_name(name)].type in TQ_TYPES:
            # No model is trained with a scale for 256 columns: a program has rounded floats.
            raise ValueError(
                f"tensor {gguf_name(name)}: found blocks of different scales in a row, expected one a row; "
                f"{_NOT_TRAINED_AS_TERNARY}"
            )
        found.append(matrix)
    scale_per = common_scale_per(found) or "row"
    embedding, head = (name in matrices for name in _TABLES)
    return replace(
        config,
        linear="ternary",
        scale_per=scale_per,
        scale_dtype=common_scale_dtype(found, scale_per),
        activation_bits=activation_bits(file.metadata, scale_per, log),
        embedding="ternary" if embedding else "float",
        ternary_head=head,
    )


def _block_scales(file: GGUFFile, config: ModelConfig, name: str) -> np.ndarray:
    """Return the scales of a ternary matrix, one for each block of each row in our order; 0 is of zeros."""
    stored, factor = gguf_name(name), gguf_scale_name(name)
    try:
        scales = ternary_scales(file.blocks(stored), file.tensors[stored].type)
    except ValueError as error:
        raise ValueError(f"tensor {stored}: {error}; {_NOT_TRAINED_AS_TERNARY}") from error
    if is_block_linear(name) and factor in file.tensors:
        factors = file.read(factor)
        if not 0 < factors[0] < np.inf:
            raise ValueError(f"tensor {factor}: found a scale of {factors[0]}, expected a positive number")
        scales = scales * factors[0]
    return separate_rows(scales, name, config)


def _stored_scales(file: GGUFFile, config: ModelConfig, name: str) -> np.ndarray:
    """Return the scales of a ternary matrix in the form of an artifact."""
    scales = _block_scales(file, config, name)
    parameter = next(parameter for parameter in parameters(config) if parameter.name == name)
    rows, columns = parameter.shape
    found = scales_of_grid(scales, config.ternary_form.grid(rows, columns))
    return found.reshape(config.ternary_form.stored_shape(rows, columns))
