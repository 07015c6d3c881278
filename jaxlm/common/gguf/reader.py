"""GGUF files of llama.cpp, opened as an artifact: Llama, Qwen2, Qwen3 and BitNet b1.58, ternary codes exact."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.parameters import parameters, scale_name, stored_tensors
from jaxlm.common.architecture.ternary import pack, round_to
from jaxlm.common.artifact.artifact import Artifact
from jaxlm.common.gguf.config import from_metadata, nearest_architecture
from jaxlm.common.gguf.file import GGUFFile, can_dequantize
from jaxlm.common.gguf.rope import FACTORS, from_rope_factors
from jaxlm.common.gguf.tensors import (
    TERNARY_TYPES,
    gguf_name,
    gguf_scale_name,
    is_block_linear,
    separate_rows,
    ternary_codes,
    ternary_scale,
)

_EMBEDDING, _HEAD = gguf_name("model.embed_tokens.weight"), gguf_name("lm_head.weight")


def open_gguf(path: str | Path, *, dequantize: bool = False, log: Callable[[str], None] = print) -> Artifact:
    """Open a GGUF file of architecture llama, qwen2, qwen3 or bitnet as an artifact that converts tensors on use.

    Where all linears of the blocks are TQ1_0 or TQ2_0 the model is ternary and the artifact packed. Otherwise, and
    always with `dequantize`, the model is dense and the artifact latent, with float32 weights. `log` receives a line on
    each assumption. Raises ValueError naming the fault of the file, or the part of it that our model cannot compute.
    """
    file = GGUFFile(path)
    try:
        config = _dense_config(file, log)
        _check_tensors(file, config)
        scales = {} if dequantize else _ternary_scales(file, config, log)
        if scales:
            values = np.array(list(scales.values()), np.float32)
            exact = np.array_equal(round_to("bfloat16", values, np), values)
            config = replace(config, linear="ternary", scale_dtype="bfloat16" if exact else "float32")
    except ValueError as error:
        raise ValueError(f"{file.path}: {error}") from error
    kind = "packed" if scales else "latent"
    tensors = _Tensors(file, config, scales)
    return Artifact(config, kind, "float32", tensors, stored_tensors(config, kind), file.metadata)


class _Tensors(Mapping[str, np.ndarray]):
    """The tensors of an artifact by name, each converted from a GGUF file on use."""

    def __init__(self, file: GGUFFile, config: ModelConfig, scales: Mapping[str, np.float32]):
        # `scales` holds one scale per ternary matrix by name, and is empty for a latent model.
        self._file = file
        self._config = config
        self._scales = {scale_name(name): scale for name, scale in scales.items()}
        stored = stored_tensors(config, "packed" if scales else "latent")
        self._names = dict.fromkeys(tensor.name for tensor in stored)

    def __getitem__(self, name: str) -> np.ndarray:
        if name in self._scales:
            return np.array([self._scales[name]])
        if name not in self._names:
            raise KeyError(name)
        if scale_name(name) in self._scales:
            return pack(separate_rows(self._codes(gguf_name(name)), name, self._config))
        weight = self._file.read(gguf_name(name))
        if is_block_linear(name) and gguf_scale_name(name) in self._file.tensors:
            weight = weight * self._file.read(gguf_scale_name(name))
        return separate_rows(weight, name, self._config)

    def _codes(self, name: str) -> np.ndarray:
        try:
            return ternary_codes(self._file.blocks(name), self._file.tensors[name].type)
        except ValueError as error:
            raise ValueError(f"{self._file.path}: tensor {name}: {error}") from error

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


def _ternary_scales(file: GGUFFile, config: ModelConfig, log: Callable[[str], None]) -> dict[str, np.float32]:
    """Return the scale of every linear of the blocks by name; an empty dict where one of them is not ternary."""
    linears = [parameter.name for parameter in parameters(config) if is_block_linear(parameter.name)]
    others = [name for name in linears if file.tensors[gguf_name(name)].type not in TERNARY_TYPES]
    if others and (config.sub_norm or len(others) < len(linears)):
        found = file.tensors[gguf_name(others[0])].type.name
        log(f"{gguf_name(others[0])} is {found}: the model is read as dense, not as ternary")
    return {} if others else {name: _ternary_scale(file, name) for name in linears}


def _ternary_scale(file: GGUFFile, name: str) -> np.float32:
    stored, factor = gguf_name(name), gguf_scale_name(name)
    try:
        scale = ternary_scale(file.blocks(stored), file.tensors[stored].type)
    except ValueError as error:
        raise ValueError(
            f"tensor {stored}: {error}; the model was not trained as ternary: open it as dense, with dequantize=True"
        ) from error
    if factor in file.tensors:
        scale = scale * file.read(factor)[0]
        if not 0 < scale < np.inf:
            raise ValueError(f"tensor {factor}: found a scale of {scale}, expected a positive number")
    return scale
