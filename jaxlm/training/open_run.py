"""The run directory of the trainer, whose config holds all fields of the model."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jaxlm.common.run.run_config import StepsConfig
from jaxlm.common.run.run_directory import RunDirectory, open_run_directory, recorded_settings
from jaxlm.common.run.schedule_changes import Config, with_schedule_changes
from shared_tokenizer.load import load_tokenizer
from shared_tokenizer.manifest import DamagedError, verify_manifest


def run_settings(config: StepsConfig, model_fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return all settings of a run, as its config.yaml holds them."""
    settings = asdict(config) | {"model": dict(model_fields)}
    settings.pop("distributed", None)  # of this start, not of the run
    return settings


def open_run(
    config: StepsConfig,
    model_fields: dict[str, Any],
    fingerprints: Mapping[str, str] | None = None,
    check: Callable[[RunDirectory], None] = lambda run: None,
    log: Callable[[str], None] = lambda line: None,
) -> contextlib.AbstractContextManager[RunDirectory]:
    """Create a run directory, or open it again with `config.resume` (see `open_run_directory`)."""
    return open_run_directory(
        Path(config.output_dir),
        type(config),
        run_settings(config, model_fields),
        resume=config.resume,
        fingerprints=fingerprints or {},
        check=check,
        log=log,
    )


def resumed_config(config: Config, log: Callable[[str], None]) -> Config:
    """Return the settings of a resumed run with the history of its schedule; other settings as they are.

    Raises ValueError where the run cannot have that number of steps.
    """
    path = Path(config.output_dir)
    recorded = recorded_settings(path, type(config), config.settings_file) if config.resume else None
    if recorded is None:
        return config
    return with_schedule_changes(config, recorded, RunDirectory(path).steps_saved, log)


def check_tokenizer(run: RunDirectory, fingerprint: str) -> None:
    """Raise ValueError where the run holds a tokenizer that is damaged, or another one than its data."""
    if not run.tokenizer.is_dir() or not any(run.tokenizer.iterdir()):
        return
    way_out = f"remove {run.tokenizer}, and resume: it is then written again from data_dir"
    try:
        verify_manifest(run.tokenizer)
    except DamagedError as error:
        raise DamagedError(f"{error}; or {way_out}") from error
    if (found := load_tokenizer(run.tokenizer).fingerprint) != fingerprint:
        raise ValueError(
            f"{run.tokenizer}: found tokenizer {found[:12]}..., expected that of data_dir {fingerprint[:12]}...; "
            f"resume with the same data_dir, or {way_out}"
        )
