"""The description of a model on disk, by its headers and a few rows at a time: nothing is loaded as a whole."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.parameters import Parameter, parameters, stored_tensors, tensor_bytes
from jaxlm.common.architecture.training_memory import training_memory
from jaxlm.common.artifact.artifact import Artifact
from jaxlm.common.artifact.safetensors import TensorFile
from jaxlm.common.formats.as_ternary import TernaryReading, row_blocks, ternary_config
from jaxlm.common.formats.dequantized import unpacked_model_type
from jaxlm.common.formats.mlx import mlx_tensors, needs_model_file
from jaxlm.common.formats.open_model import model_path, open_model
from jaxlm.common.recognition.scales import Recognition
from jaxlm.common.recognition.ternary_floats import recognize

_LORA_RANK = 8
# Rows of packed codes that are counted at a time, and arrays [tokens, vocabulary] that a loss holds.
_ROWS = 1024
_LOGIT_ARRAYS = 3
_FLOAT32_BYTES = 4
# A trained number: itself, its gradient and two moments of AdamW.
_TRAINED_BYTES = 4 * _FLOAT32_BYTES
# In a packed byte each of four codes is 2 bits; the number of them that are 1, which stands for the weight 0.
_ZEROS_IN_BYTE = np.array([sum(byte >> shift & 3 == 1 for shift in (0, 2, 4, 6)) for byte in range(256)])


@dataclass(frozen=True)
class Matrix:
    """The description of one matrix."""

    name: str
    shape: tuple[int, ...]
    form: str
    """"ternary", or what it is instead."""
    scale_per: str = ""
    """The fewest scales it is ternary with."""
    scale_dtype: str = ""
    """Shortest precision that holds its scales exactly; for rounded scales by how much their magnitudes differ."""
    zeros: float | None = None
    """Share of weights that are 0, where all were counted."""


@dataclass(frozen=True)
class OurForm:
    """One of the forms that `jaxlm convert` writes."""

    name: str
    bytes: int | None
    """Bytes of the tensors; None where the form cannot hold the model."""
    note: str
    """A remark about it, or why it cannot hold the model."""


@dataclass(frozen=True)
class Inspection:
    """A model on disk: its matrices, and what can be done with it."""

    matrices: list[Matrix]
    config: ModelConfig | None
    """The model as it would be read; with `--as ternary` where `is_hidden`. None for a file without a config."""
    is_hidden: bool = False
    """True if the weights are ternary, and the config does not say so."""


def inspect_model(path: Path, log: Callable[[str], None] = lambda line: None) -> Inspection:
    """Return what a directory, a GGUF or one safetensors file holds.

    `log` receives a line on each assumption. Raises ValueError on what cannot be read, and on another family of models
    by its name, whether its config or its weights tell it.
    """
    path = model_path(path)
    if path.suffix == ".safetensors" and path.is_file():
        return Inspection([_matrix(name, each) for name, each in _recognize_file(TensorFile(path))], None)
    lines: list[str] = []
    artifact = open_model(path, log=lines.append)
    if artifact.kind == "packed":
        _log_all(lines, log)
        return Inspection([_packed_matrix(artifact, each) for each in _matrices(artifact.config)], artifact.config)
    found = {each.name: recognize(row_blocks(artifact, each), _shape(each)) for each in _matrices(artifact.config)}
    _refuse_other_families(path, artifact.config, found)
    matrices = [_matrix(name, each) for name, each in found.items()]
    if artifact.config.is_ternary:
        _log_all(lines, log)
        return Inspection(matrices, artifact.config)
    config = ternary_config(artifact.config, found, TernaryReading(), log)
    _log_all([] if config else lines, log)  # the line on the first rows says less than all rows do
    return Inspection(matrices, config or artifact.config, config is not None)


def _log_all(lines: list[str], log: Callable[[str], None]) -> None:
    for line in lines:
        log(line)


def _matrices(config: ModelConfig) -> list[Parameter]:
    return [parameter for parameter in parameters(config) if len(parameter.shape) == 2]


def _shape(parameter: Parameter) -> tuple[int, int]:
    rows, columns = parameter.shape
    return rows, columns


def _recognize_file(file: TensorFile) -> Iterator[tuple[str, Recognition]]:
    for name in file:
        stored = file.stored(name)
        if len(stored.shape) == 2 and 0 not in stored.shape and stored.dtype in ("float32", "bfloat16", "float16"):
            rows, columns = stored.shape
            step = max(1, 2**22 // columns)
            blocks = (file.rows(name, start, start + step) for start in range(0, rows, step))
            yield name, recognize(blocks, (rows, columns))


def _matrix(name: str, found: Recognition) -> Matrix:
    if not found.is_ternary:
        return Matrix(name, found.shape, found.reason)
    scale_dtype = (found.exact_in or ("float32",))[0] if found.is_exact else f"rounded by {found.deviation:.0e}"
    return Matrix(name, found.shape, "ternary", found.scale_per, scale_dtype, found.zeros)


def _packed_matrix(artifact: Artifact, parameter: Parameter) -> Matrix:
    if parameter.storage != "ternary":
        return Matrix(parameter.name, parameter.shape, parameter.storage)
    packed, config = artifact.tensors[parameter.name], artifact.config
    # In pieces: numpy counts in a copy of eight times the size.
    pieces = (packed[start : start + _ROWS].ravel() for start in range(0, len(packed), _ROWS))
    counts = sum(np.bincount(piece, minlength=256) for piece in pieces)
    zeros = counts @ _ZEROS_IN_BYTE / math.prod(parameter.shape)
    return Matrix(parameter.name, parameter.shape, "ternary", config.scale_per, config.scale_dtype, float(zeros))


def _refuse_other_families(path: Path, config: ModelConfig, found: dict[str, Recognition]) -> None:
    for name, matrix in found.items():
        if matrix.reason not in ("", "dense", "not finite") and not config.is_ternary:
            raise ValueError(
                f"{path}: {name}: found weights of another family ({matrix.reason}), expected dense or ternary ones"
            )


def our_forms(config: ModelConfig) -> list[OurForm]:
    """Return every form that `jaxlm convert` writes a model in, with its bytes or the reason why it cannot."""
    return [*_directories(config), *_gguf_files(config)]


def _directories(config: ModelConfig) -> Iterator[OurForm]:
    kind = "packed" if config.has_packed_form else "latent"
    if kind == "packed":
        yield OurForm("packed", tensor_bytes(config, "packed"), "for training, generation and fine-tuning here")
    note = "for training here" + ("; made of codes and scales where there are none" if kind == "packed" else "")
    yield OurForm("latent", tensor_bytes(config, "latent"), note)
    if config.is_ternary:
        try:
            unpacked_model_type(config)
        except ValueError as error:
            yield OurForm("dequantized", None, _reason(error))
        else:
            float_dtype = "float32" if config.scale_dtype == "float32" else config.scale_dtype
            size = sum(tensor.nbytes for tensor in stored_tensors(config, "latent", float_dtype))
            exact = "the same model" if config.activation_bits is None else "without its activation quantizer"
            yield OurForm("dequantized", size, f"floats of {float_dtype} for transformers, {exact}")
    size = sum(tensor.stored.nbytes for tensor in mlx_tensors(config, kind, "float32"))
    yield OurForm("mlx", size, "with a model file" if needs_model_file(config) else "for stock mlx-lm as it is")


def _gguf_files(config: ModelConfig) -> Iterator[OurForm]:
    from jaxlm.common.gguf.config import architecture  # importing the gguf library takes a third of a second
    from jaxlm.common.gguf.ternary_blocks import check_block_size
    from jaxlm.common.gguf.types import TYPES
    from jaxlm.common.gguf.writer import TernaryType, predict_tensors

    types: tuple[TernaryType, ...] = ("Q2_0", "TQ2_0", "TQ1_0")
    for kind in types if config.is_ternary else types[:1]:
        name = f"gguf {kind}" if config.is_ternary else "gguf"
        try:
            architecture(config)
            check_block_size(config, TYPES[kind])
        except ValueError as error:
            yield OurForm(name, None, _reason(error))
            continue
        tensors = predict_tensors(config, "F16", kind)
        size = sum(quantization.tensor_bytes(math.prod(shape)) for _, shape, quantization in tensors)
        yield OurForm(name, size, "for llama.cpp, other floats in F16")


def _reason(error: ValueError) -> str:
    return str(error).partition(";")[0]  # without the way out


def lora_memory(config: ModelConfig, tokens: int) -> int:
    """Return about how many bytes `mlxlm finetune` needs for LoRA of rank 8 on one sequence of so many tokens."""
    kind = "packed" if config.has_packed_form else "latent"
    base = sum(tensor.stored.nbytes for tensor in mlx_tensors(config, kind, "float32"))
    linears = (each for each in parameters(config) if each.name.endswith("_proj.weight"))
    adapters = sum(_LORA_RANK * sum(each.shape) for each in linears)
    logits = _LOGIT_ARRAYS * _FLOAT32_BYTES * tokens * config.vocab_size
    activations = training_memory(config, 1, tokens, _FLOAT32_BYTES).activations
    return base + _TRAINED_BYTES * adapters + activations + logits


def qat_memory(config: ModelConfig, tokens: int) -> int:
    """Return about how many bytes training all latent weights needs on one sequence of so many tokens."""
    return training_memory(config, 1, tokens, _FLOAT32_BYTES).total
