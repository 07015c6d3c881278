"""Conversion that proves itself: write a model, read it back, compare it with its source, keep the report."""

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxlm.compare import Comparison, compare_models, probe_tokens
from jaxlm.export import stored_tensor_reader
from jaxlm.load import artifact_params, load_model
from jaxlm.run_directory import RunDirectory, is_run_directory
from jaxlm.spec.artifact import Artifact, load_artifact, write_artifact
from jaxlm.spec.config import ModelConfig
from jaxlm.spec.formats.dequantized import write_dequantized
from jaxlm.spec.formats.hub import open_hub
from jaxlm.spec.formats.mlx import mlx_tensors, needs_model_file, open_mlx, write_mlx
from jaxlm.spec.manifest import replaced_file, sealed_directory
from jaxlm.spec.model_files import open_tensors
from jaxlm.spec.names import Kind, stored_tensors
from jaxlm.ternary_linear import Params
from shared_tokenizer.gguf_metadata import gguf_tokenizer_metadata
from shared_tokenizer.load import has_tokenizer
from shared_tokenizer.tokenizer import Tokenizer

REPORT = "conversion.json"
Form = Literal["packed", "latent", "dequantized", "mlx", "gguf"]
FloatType = Literal["float32", "bfloat16", "float16"]
TernaryType = Literal["TQ1_0", "TQ2_0"]
FLOAT16_ROUNDING = 2.0**-11  # a GGUF keeps scales in float16, and its writer warns of those that are rounded
_GGUF_FLOATS: dict[FloatType, Any] = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}

# Computes the logits `[1, L, V]` of a model on disk by another program; None where that cannot be done here.
RunElsewhere = Callable[[Path, np.ndarray], tuple[str, np.ndarray] | None]


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What to write."""

    form: Form
    float_dtype: FloatType = "float32"
    ternary_type: TernaryType = "TQ2_0"
    with_tokenizer: bool = True
    model_file: str | None = None
    """Text of the model file of an MLX directory, for models that need one."""
    logits_tolerance: float | None = None
    """Largest mean difference of logits; None allows any, and only reports it."""

    def kind(self, config: ModelConfig) -> Kind:
        """The form of the tensors that the writer asks for."""
        if self.form == "latent" or not config.has_packed_form:
            return "latent"
        return "packed"


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion wrote, compared with what it was made from."""

    tensors: list[dict[str, Any]]
    """Name, shape, dtype and bytes of every tensor in the file."""
    bytes_predicted: int
    bytes_found: int
    comparison: Comparison
    logits_by: str
    """The program that computed the logits of what was written."""
    warnings: list[str]

    scale_tolerance: float = 0.0
    """Largest relative difference of a scale that the form allows."""

    @property
    def exact(self) -> bool:
        """Whether sizes, codes and scales are all as they should be."""
        same_codes = not self.comparison.codes_differing
        same_scales = self.comparison.scales_max_difference <= self.scale_tolerance
        return self.bytes_predicted == self.bytes_found and same_codes and same_scales


def convert(
    source: Path,
    destination: Path,
    conversion: Conversion,
    run_elsewhere: RunElsewhere = lambda path, token_ids: None,
) -> ConversionReport:
    """Write a model that `load_model` opens in another form, atomically, with its report in it or beside a GGUF.

    Raises ValueError, leaving nothing behind, where the source has not what is asked for or where a size, a code or a
    scale of what was written is not that of the source.
    """
    model, params, tokenizer = load_model(source)
    config = model.config
    _check(source, config, conversion)
    with _tokenizer_directory(source, tokenizer, conversion) as tokenizer_dir:
        if conversion.form == "gguf":
            return _convert_to_gguf(destination, config, params, conversion, tokenizer_dir)
        with sealed_directory(destination) as temporary:
            read = stored_tensor_reader(params, config, conversion.kind(config))
            _write_directory(temporary, config, read, conversion, tokenizer_dir)
            report = _report_directory(temporary, config, params, conversion, run_elsewhere)
            _check_exact(destination, report, conversion)
            _write_report(temporary / REPORT, report)
    return report


def report_path(destination: Path, form: Form) -> Path:
    """Where the report of a conversion lies: in the directory written, or beside the GGUF."""
    return destination.with_suffix(f".{REPORT}") if form == "gguf" else destination / REPORT


def _check(source: Path, config: ModelConfig, conversion: Conversion) -> None:
    form = conversion.form
    if form in ("packed", "dequantized") and not config.has_packed_form:
        word = "pack" if form == "packed" else "dequantize"
        raise ValueError(f"{source}: a dense model, which has nothing to {word}; convert it to latent")
    if conversion.float_dtype == "float16" and form != "gguf":
        raise ValueError("float_dtype: found 'float16', which only a GGUF is written in; choose float32 or bfloat16")


@contextlib.contextmanager
def _tokenizer_directory(source: Path, tokenizer: Tokenizer | None, conversion: Conversion) -> Iterator[Path | None]:
    """The directory with the source's tokenizer files; those of a GGUF are written for as long as they are needed."""
    if tokenizer is None or not conversion.with_tokenizer:
        yield None
    elif is_run_directory(source):
        yield RunDirectory(source).tokenizer
    elif has_tokenizer(source):
        yield source
    else:
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save(Path(folder))
            yield Path(folder)


def _write_directory(
    directory: Path,
    config: ModelConfig,
    read: Callable[[str], np.ndarray],
    conversion: Conversion,
    tokenizer_dir: Path | None,
) -> None:
    kind, float_dtype = conversion.kind(config), conversion.float_dtype
    if conversion.form == "mlx":
        form = "packed" if kind == "packed" else "float"
        text = conversion.model_file if needs_model_file(config) else None
        write_mlx(
            directory, config, read, form=form, float_dtype=float_dtype, tokenizer_dir=tokenizer_dir, model_file=text
        )
    elif conversion.form == "dequantized":
        write_dequantized(directory, config, read, float_dtype=float_dtype, tokenizer_dir=tokenizer_dir)
    else:
        write_artifact(directory, config, kind, read, float_dtype=float_dtype, tokenizer_dir=tokenizer_dir)


def _report_directory(
    directory: Path, config: ModelConfig, params: Params, conversion: Conversion, run_elsewhere: RunElsewhere
) -> ConversionReport:
    kind, float_dtype = conversion.kind(config), conversion.float_dtype
    if conversion.form == "mlx":
        written, predicted = open_mlx(directory), [t.stored for t in mlx_tensors(config, kind, float_dtype)]
    elif conversion.form == "dequantized":
        written, predicted = open_hub(directory), stored_tensors(config, "latent", float_dtype)
    else:
        written, predicted = load_artifact(directory, verify=False), stored_tensors(config, kind, float_dtype)
    found = open_tensors(directory).stored().values()
    elsewhere = run_elsewhere(directory, probe_tokens(config))
    return ConversionReport(
        tensors=[asdict(tensor) | {"bytes": tensor.nbytes} for tensor in found],
        bytes_predicted=sum(tensor.nbytes for tensor in predicted),
        bytes_found=sum(tensor.nbytes for tensor in found),
        comparison=_compare(config, params, written, None if elsewhere is None else elsewhere[1]),
        logits_by="jaxlm" if elsewhere is None else elsewhere[0],
        warnings=[],
    )


def _convert_to_gguf(
    destination: Path, config: ModelConfig, params: Params, conversion: Conversion, tokenizer_dir: Path | None
) -> ConversionReport:
    from jaxlm.spec.formats.gguf import open_gguf  # its library takes a third of a second to import
    from jaxlm.spec.formats.gguf_file import GGUFFile
    from jaxlm.spec.formats.gguf_writer import predict_tensors, tensor_bytes, write_gguf

    kind, float_type = conversion.kind(config), _GGUF_FLOATS[conversion.float_dtype]
    metadata = {} if tokenizer_dir is None else gguf_tokenizer_metadata(tokenizer_dir, config.vocab_size)
    read = stored_tensor_reader(params, config, kind)
    warnings = write_gguf(
        destination,
        config,
        read,
        kind=kind,
        float_type=float_type,
        ternary_type=conversion.ternary_type,
        metadata=metadata,
    )
    try:
        found = GGUFFile(destination).tensors
        predicted = predict_tensors(config, float_type, conversion.ternary_type)
        report = ConversionReport(
            tensors=[
                {"name": name, "shape": list(t.shape), "dtype": t.type.name, "bytes": t.nbytes}
                for name, t in found.items()
            ],
            bytes_predicted=sum(tensor_bytes(shape, quantization) for _, shape, quantization in predicted),
            bytes_found=sum(tensor.nbytes for tensor in found.values()),
            comparison=_compare(config, params, open_gguf(destination, say=lambda line: None), None),
            logits_by="jaxlm",
            warnings=warnings,
            scale_tolerance=FLOAT16_ROUNDING,
        )
        _check_exact(destination, report, conversion)
        with replaced_file(report_path(destination, "gguf")) as temporary:
            _write_report(temporary, report)
    except BaseException:
        destination.unlink()
        raise
    return report


def _compare(config: ModelConfig, params: Params, written: Artifact, logits: np.ndarray | None) -> Comparison:
    return compare_models(config, params, written.config, artifact_params(written), logits)


def _check_exact(destination: Path, report: ConversionReport, conversion: Conversion) -> None:
    if not report.exact:
        raise ValueError(
            f"{destination}: not written: found {report.bytes_found} bytes of {report.bytes_predicted} predicted, "
            f"{report.comparison.codes_differing} codes and {report.comparison.scales_differing} scales unlike "
            "the source"
        )
    tolerance, found_difference = conversion.logits_tolerance, report.comparison.logits_mean_difference
    if tolerance is not None and not found_difference <= tolerance:
        raise ValueError(
            f"{destination}: not written: logits by {report.logits_by} differ by {found_difference:.2e} on average, "
            f"expected at most {tolerance:.2e}"
        )


def _write_report(path: Path, report: ConversionReport) -> None:
    path.write_text(json.dumps(asdict(report), indent=2) + "\n", "utf-8")
