"""The run directory of the trainer: its config holds all fields of the model."""

import contextlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jaxlm.spec.run.run_directory import RunDirectory, open_run_directory, read_settings
from jaxlm.train_config import RESUMABLE_CHANGES, TrainConfig


def read_config(path: Path) -> dict[str, Any]:
    """The resolved config of a run, as plain values."""
    content = read_settings(path)
    if not isinstance(content["model"], dict):
        raise ValueError(f"{path}: found a model {content['model']!r} in its config, expected the fields of a model")
    return content


def open_run(config: TrainConfig, model_fields: dict[str, Any]) -> contextlib.AbstractContextManager[RunDirectory]:
    """Create a run directory, or open it again with `config.resume` (see `open_run_directory`)."""
    settings = asdict(config) | {"model": model_fields}
    del settings["distributed"]  # of this start, not of the run
    return open_run_directory(Path(config.output_dir), settings, resume=config.resume, may_change=RESUMABLE_CHANGES)
