"""Conversion with a proof: write a model, read it back, compare it with its source, and keep the report."""

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.checkpoints.export import stored_tensor_reader
from jaxlm.checkpoints.weights import Weights, artifact_weights
from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.parameters import Kind, parameters, stored_tensors
from jaxlm.common.artifact.artifact import Artifact, load_artifact, write_artifact
from jaxlm.common.artifact.model_files import open_tensors
from jaxlm.common.formats.as_ternary import TernaryReading
from jaxlm.common.formats.dequantized import write_dequantized
from jaxlm.common.formats.hub import open_hub
from jaxlm.common.formats.mlx import mlx_tensors, needs_model_file, open_mlx, write_mlx
from jaxlm.common.formats.mlx_stock import has_stock_form
from jaxlm.common.run.run_directory import RunDirectory, is_run_directory
from jaxlm.conversion.compare import (
    LogitComparison,
    WeightComparison,
    compare_logits,
    compare_weights,
    probe_logits,
    probe_tokens,
)
from jaxlm.conversion.convert_config import FloatType, TernaryType
from jaxlm.conversion.output import Form, atomic_output, begun_report
from jaxlm.load import open_weights
from jaxlm.ops.ternary_linear import TernaryWeight
from shared_tokenizer.gguf.writer import gguf_tokenizer_metadata, other_stop_ids
from shared_tokenizer.load import load_tokenizer, tokenizer_directory
from shared_tokenizer.manifest import write_file
from shared_tokenizer.tokenizers.tokenizer import Tokenizer

FLOAT16_ROUNDING = 2.0**-11
LATENT_ROUNDING = 1e-4
_GGUF_FLOATS: dict[FloatType, Any] = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}

Read = Callable[[str], np.ndarray]
# Function from a model directory and token ids `[1, L]` to the name of another program and its logits `[1, L, V]`, or
# None where no other program can compute them.
RunElsewhere = Callable[[Path, np.ndarray], tuple[str, np.ndarray] | None]


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """The form to write, and the limits of the proof."""

    form: Form
    float_dtype: FloatType = "float32"
    ternary_type: TernaryType = "Q2_0"
    with_tokenizer: bool = True
    model_file: str | None = None
    """Text of the model file of an MLX directory, used where the model needs one."""
    logits_tolerance: float | None = None
    """Largest mean difference of logits that is accepted; None accepts any."""

    def kind(self, config: ModelConfig) -> Kind:
        """Return the kind of the tensors that the writer reads."""
        if self.form == "latent" or not config.has_packed_form:
            return "latent"
        return "packed"


@dataclass(frozen=True)
class ConversionReport:
    """The result of a conversion, compared with its source."""

    tensors: list[dict[str, Any]]
    """Name, shape, dtype and bytes of every tensor written."""
    bytes_predicted: int
    bytes_found: int
    weights: WeightComparison
    logits: LogitComparison
    logits_by: str
    """Name of the program that computed the logits of the written model."""
    warnings: list[str]

    def check(self, destination: Path, conversion: Conversion) -> None:
        """Raise ValueError where a size, a code, a scale or the logits differ by more than the form allows."""
        weights = self.weights
        # A GGUF stores scales in float16; its writer warns where it rounds them.
        # Latent weights that are made of codes have a float32 scale again but for the sums.
        allowed = {"gguf": FLOAT16_ROUNDING, "latent": LATENT_ROUNDING}.get(conversion.form, 0.0)
        same_weights = not weights.codes_differing and weights.scales_max_difference <= allowed
        if self.bytes_predicted != self.bytes_found or not same_weights:
            raise ValueError(
                f"{destination}: not written: found {self.bytes_found} bytes, expected {self.bytes_predicted}; "
                f"{weights.codes_differing} codes and {weights.scales_differing} scales differ from the source"
            )
        tolerance, difference = conversion.logits_tolerance, self.logits.mean_difference
        if tolerance is not None and not difference <= tolerance:
            raise ValueError(
                f"{destination}: not written: logits by {self.logits_by} differ by {difference:.2e} on average, "
                f"expected at most {tolerance:.2e}"
            )


@dataclass(frozen=True)
class _Written:
    """A written model, opened again."""

    artifact: Artifact
    tensors: list[dict[str, Any]]
    bytes_predicted: int
    warnings: list[str]


def convert(
    source: Path,
    destination: Path,
    conversion: Conversion,
    run_elsewhere: RunElsewhere = lambda path, token_ids: None,
    log: Callable[[str], None] = lambda phase: None,
    reading: TernaryReading | None = None,
) -> ConversionReport:
    """Write a model that `load_model` opens in another form, atomically, with a report.

    With `reading` a dense source is read as ternary (`as_ternary`).

    The report is a file in the directory written, or next to a GGUF; `log` is told each phase before it begins. Raises
    ValueError, and leaves nothing behind, where the source does not have the form or where a size, a code or a scale
    differs from the source.
    """
    log(f"opening {source}")
    config, weights, tokenizer = open_weights(source, reading=reading)
    _check(source, config, conversion)
    with (
        _tokenizer_directory(source, tokenizer, conversion) as tokenizer_dir,
        atomic_output(destination, conversion.form) as output,
    ):
        read = stored_tensor_reader(weights, config, conversion.kind(config))
        made_latent = _made_latent(config, weights) if conversion.form == "latent" else []
        log("writing the tensors")
        write = _write_gguf if conversion.form == "gguf" else _write_directory
        written = write(output, config, read, conversion, tokenizer_dir)
        artifact = written.artifact
        log("comparing every code, scale and float")
        comparison = compare_weights(config, weights, artifact.config, artifact_weights(artifact))
        log("computing logits of the source")
        logits = probe_logits(config, weights)
        del weights, read  # the weights of a run are all in memory, and the other program needs as much
        log("computing logits of the copy")
        elsewhere = None if conversion.form == "gguf" else run_elsewhere(output, probe_tokens(config))
        program, written_logits = elsewhere or ("jaxlm", probe_logits(artifact.config, artifact_weights(artifact)))
        report = ConversionReport(
            tensors=written.tensors,
            bytes_predicted=written.bytes_predicted,
            bytes_found=sum(tensor["bytes"] for tensor in written.tensors),
            weights=comparison,
            logits=compare_logits(logits, written_logits),
            logits_by=program,
            warnings=[*written.warnings, *made_latent],
        )
        report.check(destination, conversion)
        content = json.dumps(asdict(report), indent=2) + "\n"
        write_file(begun_report(output, conversion.form), content.encode("utf-8"))
    return report


def _check(source: Path, config: ModelConfig, conversion: Conversion) -> None:
    form = conversion.form
    if form in ("packed", "dequantized") and not config.has_packed_form:
        word = "pack" if form == "packed" else "dequantize"
        raise ValueError(f"{source}: found a dense model, which has nothing to {word}; convert it to latent")
    if conversion.float_dtype == "float16" and form not in ("gguf", "dequantized") and not _is_stock(config, form):
        raise ValueError(
            "float_dtype: found 'float16', which only a GGUF, a dequantized directory and the 2-bit format of stock "
            "mlx-lm may have; choose float32 or bfloat16"
        )


def _made_latent(config: ModelConfig, weights: Weights) -> list[str]:
    """Return a warning where a source has no latent weights, so that they are made of its codes and scales."""
    ternary = next((each for each in parameters(config) if each.storage == "ternary"), None)
    if ternary is None or not isinstance(weights(ternary), TernaryWeight):
        return []
    return [
        "the source is packed: its latent weights were made of codes and scales, equally far from the next code; those "
        "that it was trained with, where they are at hand, know more"
    ]


def _is_stock(config: ModelConfig, form: Form) -> bool:
    return form == "mlx" and has_stock_form(config)


@contextlib.contextmanager
def _tokenizer_directory(source: Path, tokenizer: Tokenizer | None, conversion: Conversion) -> Iterator[Path | None]:
    """Yield the directory with the source's tokenizer files, or None without a tokenizer."""
    if tokenizer is None or not conversion.with_tokenizer:
        yield None
    elif is_run_directory(source):
        yield RunDirectory(source).tokenizer
    else:
        with tokenizer_directory(source, tokenizer) as directory:
            yield directory


def _write_directory(
    directory: Path, config: ModelConfig, read: Read, conversion: Conversion, tokenizer_dir: Path | None
) -> _Written:
    kind, float_dtype = conversion.kind(config), conversion.float_dtype
    rest: dict[str, Any] = {"float_dtype": float_dtype, "tokenizer_dir": tokenizer_dir}
    if conversion.form == "mlx":
        text = conversion.model_file if needs_model_file(config) else None
        form = "packed" if kind == "packed" else "float"
        write_mlx(directory, config, read, form=form, model_file=text, **rest)
        artifact, predicted = open_mlx(directory), [t.stored for t in mlx_tensors(config, kind, float_dtype)]
    elif conversion.form == "dequantized":
        write_dequantized(directory, config, read, **rest)
        artifact, predicted = open_hub(directory), stored_tensors(config, "latent", float_dtype)
    else:
        write_artifact(directory, config, kind, read, **rest)
        artifact, predicted = load_artifact(directory, verify=False), stored_tensors(config, kind, float_dtype)
    tensors = [asdict(tensor) | {"bytes": tensor.nbytes} for tensor in open_tensors(directory).stored().values()]
    return _Written(artifact, tensors, sum(tensor.nbytes for tensor in predicted), [])


def _write_gguf(
    path: Path, config: ModelConfig, read: Read, conversion: Conversion, tokenizer_dir: Path | None
) -> _Written:
    from jaxlm.common.gguf.file import GGUFFile
    from jaxlm.common.gguf.reader import open_gguf  # importing the gguf library takes a third of a second
    from jaxlm.common.gguf.writer import predict_tensors, write_gguf

    float_type, ternary_type = _GGUF_FLOATS[conversion.float_dtype], conversion.ternary_type
    metadata, unnamed = {}, []
    if tokenizer_dir is not None:
        tokenizer = load_tokenizer(tokenizer_dir, log=lambda line: None)  # told when the source was opened
        metadata = gguf_tokenizer_metadata(tokenizer, tokenizer_dir, config.vocab_size)
        unnamed = other_stop_ids(tokenizer_dir, tokenizer)[2:]
    types: dict[str, Any] = {"float_type": float_type, "ternary_type": ternary_type}
    warnings = write_gguf(path, config, read, kind=conversion.kind(config), metadata=metadata, **types)
    predicted = predict_tensors(config, float_type, ternary_type)
    tensors = [
        {"name": name, "shape": list(tensor.shape), "dtype": tensor.type.name, "bytes": tensor.nbytes}
        for name, tensor in GGUFFile(path).tensors.items()
    ]
    bytes_predicted = sum(quantization.tensor_bytes(math.prod(shape)) for _, shape, quantization in predicted)
    if unnamed:
        ids = ", ".join(map(str, unnamed))
        warnings.append(f"a GGUF names three tokens that end a text: llama.cpp does not stop at {ids}")
    # The reader's assumptions need no line here: the config is known.
    return _Written(open_gguf(path, log=lambda line: None), tensors, bytes_predicted, warnings)
