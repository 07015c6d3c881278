"""The run directory of the trainer, whose config holds all fields of the model."""

import contextlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jaxlm.common.run.run_directory import RunDirectory, open_run_directory
from jaxlm.training.train_config import TrainConfig


def open_run(config: TrainConfig, model_fields: dict[str, Any]) -> contextlib.AbstractContextManager[RunDirectory]:
    """Create a run directory, or open it again with `config.resume` (see `open_run_directory`)."""
    settings = asdict(config) | {"model": model_fields}
    del settings["distributed"]  # of this start, not of the run
    return open_run_directory(Path(config.output_dir), TrainConfig, settings, resume=config.resume)
