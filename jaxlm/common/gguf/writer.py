"""A GGUF file for llama.cpp, written from one of our models one tensor at a time."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from gguf.constants import GGUFValueType, LlamaFileType
from gguf.gguf_writer import GGUFWriter

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.packing import packed_rows, unpack
from jaxlm.common.architecture.parameters import Kind, Parameter, parameters, scale_name
from jaxlm.common.gguf.config import architecture, check_tokens, to_metadata
from jaxlm.common.gguf.rope import FACTORS, rope_factors
from jaxlm.common.gguf.tensors import gguf_name, gguf_scale_name, interleave_rows, is_block_linear
from jaxlm.common.gguf.ternary_blocks import block_scales, check_block_size, to_ternary_blocks
from jaxlm.common.gguf.types import F16, F32, TYPES, TensorType, quantize_floats
from shared_tokenizer.manifest import refuse_inside_sealed, replaced_file

FloatType = Literal["F32", "F16", "BF16"]
TernaryType = Literal["Q2_0", "TQ1_0", "TQ2_0"]
Read = Callable[[str], np.ndarray]
# Name, shape and type of a tensor in the file.
GGUFTensorInfo = tuple[str, tuple[int, ...], TensorType]

_FILE_TYPES = {
    "Q2_0": 41,  # MOSTLY_Q2_0 of llama.cpp; the gguf library ends before it
    "F32": LlamaFileType.ALL_F32,
    "F16": LlamaFileType.MOSTLY_F16,
    "BF16": LlamaFileType.MOSTLY_BF16,
    "TQ1_0": LlamaFileType.MOSTLY_TQ1_0,
    "TQ2_0": LlamaFileType.MOSTLY_TQ2_0,
}
# The types that llama.cpp expects: a single int is unsigned (ids), a list of int is signed (token types).
_VALUE_TYPES = {
    bool: GGUFValueType.BOOL,
    int: GGUFValueType.UINT32,
    float: GGUFValueType.FLOAT32,
    str: GGUFValueType.STRING,
}
_ELEMENT_TYPES = _VALUE_TYPES | {int: GGUFValueType.INT32}


def write_gguf(
    path: str | Path,
    config: ModelConfig,
    read: Read,
    *,
    kind: Kind,
    float_type: FloatType = "F16",
    ternary_type: TernaryType = "Q2_0",
    metadata: Mapping[str, Any] = MappingProxyType({}),
) -> list[str]:
    """Write a model as one GGUF file, atomically, and return warnings for its readers, one line per warning.

    `read(name)` returns a tensor of an artifact of this `kind`; it is called once per tensor, in file order. Ternary
    matrices are written as `ternary_type`, norms as F32, everything else as `float_type`. `metadata` holds the
    keys of the tokenizer, with values of str, int, float, bool or a list of one of these types; its ids of special
    tokens replace those of the config.

    Raises ValueError where the path is taken, where llama.cpp cannot compute the model, and where its types cannot hold
    the weights; then nothing is left behind.
    """
    path = Path(path)
    if path.exists():
        raise ValueError(f"{path}: already exists; remove it or choose another path")
    refuse_inside_sealed(path)
    name = architecture(config)
    if config.is_ternary and kind != "packed":
        raise ValueError(f"kind: found {kind!r}, expected 'packed'; llama.cpp does not ternarise latent weights")
    check_block_size(config, TYPES[ternary_type])
    pairs = _pairs(config, ternary_type if config.linear == "ternary" else float_type, metadata)
    plan = list(_plan(config, TYPES[float_type], TYPES[ternary_type]))
    rounding: list[float] = []
    factors = rope_factors(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(path) as temporary, contextlib.closing(GGUFWriter(temporary, name)) as writer:
        for key, value in pairs.items():
            _add_pair(writer, key, value)
        if factors is not None:
            _add_tensor(writer, FACTORS, factors.shape, F32)
        for parameter, quantization in plan:
            for tensor in _tensors(parameter, quantization, config):
                _add_tensor(writer, *tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if factors is not None:
            writer.write_tensor_data(factors)
        for parameter, quantization in plan:
            for array in _arrays(parameter, quantization, config, read, rounding):
                writer.write_tensor_data(array)
    return _warnings(config, rounding)


def predict_tensors(config: ModelConfig, float_type: FloatType, ternary_type: TernaryType) -> list[GGUFTensorInfo]:
    """Return the tensors that `write_gguf` writes, in file order."""
    plan = _plan(config, TYPES[float_type], TYPES[ternary_type])
    factors = rope_factors(config)
    first = [] if factors is None else [(FACTORS, factors.shape, F32)]
    return first + [info for parameter, quantization in plan for info in _tensors(parameter, quantization, config)]


def _pairs(config: ModelConfig, file_type: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    for key in metadata:
        if not key.startswith("tokenizer."):
            raise ValueError(f"metadata {key}: expected keys of the tokenizer only")
    check_tokens(metadata, config.vocab_size)
    return {
        "general.type": "model",
        "general.file_type": int(_FILE_TYPES[file_type]),
        "general.quantization_version": 2,
        # llama.cpp needs the key, so a file without a tokenizer has it too.
        "tokenizer.ggml.model": "no_vocab",
        **to_metadata(config),
        **metadata,
    }


def _add_pair(writer: GGUFWriter, key: str, value: Any) -> None:
    is_list = isinstance(value, list)
    elements, types = (value, _ELEMENT_TYPES) if is_list else ([value], _VALUE_TYPES)
    kinds = {type(element) for element in elements}
    if len(kinds) != 1 or not kinds <= set(types):
        found = ", ".join(sorted(kind.__name__ for kind in kinds)) or "nothing"
        raise ValueError(f"metadata {key}: found {found}, expected one of str, int, float and bool, or a list of one")
    value_type = types[kinds.pop()]
    if is_list:
        writer.add_key_value(key, value, GGUFValueType.ARRAY, value_type)
    else:
        writer.add_key_value(key, value, value_type)


def _plan(
    config: ModelConfig, float_type: TensorType, ternary_type: TensorType
) -> Iterator[tuple[Parameter, TensorType]]:
    for parameter in parameters(config):
        if parameter.storage == "ternary":
            yield parameter, ternary_type
        else:
            yield parameter, F32 if len(parameter.shape) == 1 else float_type


def _has_scale_tensor(parameter: Parameter, config: ModelConfig) -> bool:
    """Return True if the float32 scale of a matrix is a tensor of its own, since blocks hold float16 scales only.

    Every build of llama.cpp reads this tensor in architecture bitnet; most builds refuse it in llama.
    """
    is_one = config.scale_per == "tensor" and is_block_linear(parameter.name)
    return is_one and parameter.storage == "ternary" and config.sub_norm and config.scale_dtype == "float32"


def _tensors(parameter: Parameter, quantization: TensorType, config: ModelConfig) -> Iterator[GGUFTensorInfo]:
    """Yield the one or two tensors that store a parameter."""
    yield gguf_name(parameter.name), parameter.shape, quantization
    if _has_scale_tensor(parameter, config):
        yield gguf_scale_name(parameter.name), (1,), F32


def _add_tensor(writer: GGUFWriter, name: str, shape: tuple[int, ...], quantization: TensorType) -> None:
    nbytes = quantization.tensor_bytes(math.prod(shape))
    number: Any = quantization.number  # the library's enum has no Q2_0
    writer.add_tensor_info(name, shape, np.dtype(np.float32), nbytes, number)


def _arrays(
    parameter: Parameter, quantization: TensorType, config: ModelConfig, read: Read, rounding: list[float]
) -> Iterator[np.ndarray]:
    """Yield the arrays of `_tensors`. Append the relative error of a rounded scale to `rounding`."""
    name, shape = parameter.name, parameter.shape
    if parameter.storage != "ternary":
        weight = _checked(read(name), name, shape, "float32")
        yield _to_float_type(interleave_rows(weight, name, config), quantization, name)
        return
    rows, columns = shape
    packed = _checked(read(name), name, (packed_rows(shape[0]), shape[1]), "uint8")
    codes = interleave_rows(unpack(packed, shape[0]), name, config)
    scales = _checked(
        read(scale_name(name)), scale_name(name), config.ternary_form.stored_shape(rows, columns), "float32"
    )
    has_scale_tensor = _has_scale_tensor(parameter, config)
    with np.errstate(over="ignore"):
        in_blocks = (np.ones_like(scales) if has_scale_tensor else scales).astype(np.float16)
    if not ((scales > 0) & (in_blocks > 0) & (in_blocks < np.inf)).all():
        wrong = scales[~((scales > 0) & (in_blocks > 0) & (in_blocks < np.inf))][0]
        raise ValueError(f"{scale_name(name)}: found {wrong:.4g}, expected a positive number that float16 can hold")
    by_grid = in_blocks.reshape(config.ternary_form.grid(rows, columns))
    by_block = interleave_rows(block_scales(by_grid, (rows, columns), quantization), name, config)
    yield to_ternary_blocks(codes, by_block, quantization)
    if has_scale_tensor:
        yield scales
    else:
        errors = np.abs(in_blocks.astype(np.float64) / scales - 1)
        rounding += errors[errors > 0].tolist()


def _checked(array: np.ndarray, name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(f"{name}: found {array.dtype} {list(array.shape)}, expected {dtype} {list(shape)}")
    if dtype == "float32" and not np.isfinite(array).all():
        raise ValueError(f"{name}: found a number that is not finite; the model has diverged")
    return array


def _to_float_type(array: np.ndarray, quantization: TensorType, name: str) -> np.ndarray:
    if quantization != F16:
        return quantize_floats(array, quantization)
    with np.errstate(over="ignore"):
        rounded = array.astype(np.float16)
    if np.isinf(rounded).any():
        raise ValueError(f"{name}: found {np.abs(array).max():.4g}, beyond float16; write it as BF16 or F32")
    return rounded


def _warnings(config: ModelConfig, rounding: list[float]) -> list[str]:
    lines = []
    if config.activation == "relu2":
        lines.append(
            "bitnet.hidden_activation is relu2: builds of llama.cpp that do not read this key, such as that of "
            "llama-cpp-python 0.3.36, compute SiLU and generate wrong text"
        )
    if rounding:
        lines.append(
            f"{len(rounding)} scales of ternary matrices are not float16 numbers and were rounded, by at most "
            f"{max(rounding):.1e} of their size; the codes are exact"
        )
    return lines
