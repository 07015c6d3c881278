"""Conversion against a copy of the same file by safetensors: seconds by phase, MB/s of the source, peak memory."""

import functools
import itertools
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.measuring.candidates import measure_apart
from rich.table import Table
from safetensors.numpy import load_file, save_file

from jaxlm.common.architecture.parameters import parameters
from jaxlm.common.architecture.presets import preset
from jaxlm.common.artifact.artifact import save_artifact
from jaxlm.common.command_line import make_console
from jaxlm.conversion.convert import Conversion, convert
from jaxlm.conversion.convert_config import FloatType
from jaxlm.conversion.output import Form
from mlxlm.model.model_file import model_file_source
from shared_tokenizer.settings import check_bounds, setting


@dataclass(frozen=True, kw_only=True)
class ConvertBenchmark:
    """Settings of the measurement."""

    preset: str = "bonsai-1.7b"
    """Model, with random weights. The source holds them as floats that training can go on from."""
    float_dtype: FloatType = "bfloat16"
    """Precision of the source."""
    forms: list[Form] = field(default_factory=lambda: ["packed", "mlx", "gguf"])
    """Forms that the source is converted into."""
    turns: int = setting(1, at_least=1)
    """Timed conversions of each."""

    def __post_init__(self) -> None:
        check_bounds(self)


def benchmark(settings: ConvertBenchmark) -> None:
    """Print seconds, MB/s and peak memory of a copy, of each conversion with its proof, and of its parts."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        source = directory / "source"
        _write_source(source, settings)
        megabytes = sum(file.stat().st_size for file in source.glob("*.safetensors")) / 1e6
        candidates = {"copy by safetensors": functools.partial(_copy, source, directory)}
        for form in settings.forms:
            candidates[f"to {form}"] = functools.partial(_convert, source, directory, form)
        found = measure_apart(candidates, settings.turns, warm_up=0)
    table = Table(title=f"{settings.preset}, {megabytes:,.0f} MB in {settings.float_dtype}")
    for heading in ("what", "seconds", "MB/s", "of the copy's", "peak MB"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    copied = found["copy by safetensors"].seconds
    for name, measured in found.items():
        speed, share, peak = megabytes / measured.seconds, copied / measured.seconds, measured.peak_bytes / 1e6
        table.add_row(name, f"{measured.seconds:.1f}", f"{speed:,.0f}", f"{share:.2f}", f"{peak:,.0f}")
    make_console().print(table)


def _write_source(directory: Path, settings: ConvertBenchmark) -> None:
    config = preset(settings.preset)
    numbers = np.random.default_rng(0).normal(0, 0.02, 2**24).astype(np.float32)
    shapes = {parameter.name: parameter.shape for parameter in parameters(config)}
    save_artifact(
        directory,
        config,
        "latent",
        lambda name: np.resize(numbers, shapes[name]),
        float_dtype=settings.float_dtype,
        tokenizer_dir=None,
    )


def _copy(source: Path, directory: Path) -> Callable[[], Any]:
    files: Sequence[Path] = sorted(source.glob("*.safetensors"))

    def run() -> None:
        for file in files:
            save_file(load_file(file), directory / f"copy-{file.name}")

    return run


def _convert(source: Path, directory: Path, form: Form) -> Callable[[], Any]:
    def run() -> None:
        phases: list[tuple[str, float]] = []
        destination = directory / f"{form}-{time.monotonic_ns()}"
        convert(
            source,
            destination,
            Conversion(form=form, with_tokenizer=False, model_file=model_file_source() if form == "mlx" else None),
            log=lambda phase: phases.append((phase, time.perf_counter())),
        )
        phases.append(("", time.perf_counter()))
        shutil.rmtree(destination) if destination.is_dir() else destination.unlink()
        for (phase, start), (_, end) in itertools.pairwise(phases):
            print(f"    {form}: {phase.split(' /')[0]}: {end - start:.1f} s", flush=True)

    return run
