"""Presets as cards, before anything is started: parameters, file size, memory, and the time on this machine.

The time is that of the operations on paper, divided by a speed: that of the newest run below the root, else that of a
matrix product that is timed here, with the share of it that a training step reached where it was measured.
"""

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxlm.common.architecture.config import ModelConfig, config_from_dict
from jaxlm.common.architecture.model_flops import model_flops
from jaxlm.common.architecture.parameters import parameter_count, tensor_bytes, ternary_parameter_count
from jaxlm.common.architecture.presets import PRESETS, preset
from jaxlm.common.architecture.training_memory import training_memory
from jaxlm.studio.reading.runs import Run

FIRST_CARDS = ("ternary-tiny", "ternary-5m", "ternary-25m", "mmfree-5m", "hybrid-5m", "dense-tiny")
# Memory of the program itself: Python, JAX, the compiled step. Measured on a CPU.
_PROGRAM_BYTES = 600e6
# Share of the speed of numpy's product of float32 matrices that steps of small models reach on a CPU. Measured.
_SHARE = 1.0
_SIZE = 768


@dataclass(frozen=True)
class Card:
    """One preset with the settings of a run."""

    name: str
    parameters: int
    ternary: float
    """Share of the parameters that are ternary."""
    file_bytes: int
    """Bytes of the packed artifact, or of float32 where there is no packed form."""
    memory_bytes: float | None
    """Bytes in training, None where there is no estimate."""
    seconds: float | None
    """Seconds of all steps, without compilation; None where the speed is not known."""
    tokens: int
    context: int


@dataclass(frozen=True)
class Speed:
    """Operations per second of a training step here, and what they were taken from."""

    flops: float
    source: str


def card(name: str, speed: Speed | None, *, vocab_size: int, batch_size: int, seq_len: int, steps: int) -> Card:
    """Return the card of a preset. Raises ValueError on an unknown one."""
    # The special tokens are those of a tokenizer that is trained here.
    model = dataclasses.replace(preset(name), vocab_size=vocab_size, bos_id=1, eos_id=2, pad_id=None)
    total = parameter_count(model)
    try:
        memory = training_memory(model, batch_size, seq_len, 4).total + _PROGRAM_BYTES
    except ValueError:
        memory = None
    flops = model_flops(model, batch_size, seq_len) * steps
    return Card(
        name,
        total,
        ternary_parameter_count(model) / total,
        tensor_bytes(model, "packed") if model.has_packed_form else 4 * total,
        memory,
        None if speed is None else flops / speed.flops,
        batch_size * seq_len * steps,
        model.max_seq_len,
    )


def speed_here(runs: Sequence[Run], name: str) -> Speed:
    """Return the speed of the newest run of a preset, else of any run, else of a product that is timed here."""
    measured = [run for run in runs if _flops_per_second(run) is not None]
    same = [run for run in measured if run.settings.get("preset") == name]
    for run in (same or measured)[:1]:
        found = _flops_per_second(run)
        assert found is not None
        return Speed(found, f"as fast as {run.name}")
    return Speed(_product_speed() * _SHARE, "by a matrix product timed on this machine, within a factor of two")


def _flops_per_second(run: Run) -> float | None:
    milliseconds, settings = run.latest.get("perf/step_time_ms"), run.settings
    if run.kind != "train" or not milliseconds:
        return None
    try:
        return model_flops(_model_of(settings), int(settings["batch_size"]), int(settings["seq_len"])) / (
            milliseconds / 1000
        )
    except (KeyError, TypeError, ValueError):
        return None


def _model_of(settings: Mapping[str, Any]) -> ModelConfig:
    fields = settings["model"]
    if "hidden_size" not in fields:
        fields = dataclasses.asdict(preset(settings["preset"])) | fields
    return config_from_dict(fields)


@functools.cache
def _product_speed() -> float:
    """Return the operations per second of a product of float32 matrices, the best of some."""
    left = np.ones((_SIZE, _SIZE), np.float32)
    best = 1e9
    for _ in range(6):
        start = time.perf_counter()
        _ = left @ left
        best = min(best, time.perf_counter() - start)
    return 2 * _SIZE**3 / best


def preset_names() -> list[str]:
    """Return all presets, those of the first cards first."""
    return [*FIRST_CARDS, *(name for name in PRESETS if name not in FIRST_CARDS)]
