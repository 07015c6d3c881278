"""The command `jaxlm runs`: the runs below a folder."""

import fcntl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from jaxlm.common.command_line import make_console
from jaxlm.common.run.complete_checkpoints import checkpoint_steps
from jaxlm.common.run.metrics_log import read_metrics
from jaxlm.common.run.run_directory import LOCK, SETTINGS_FILES, RunDirectory, read_settings
from shared_tokenizer.settings import setting


@dataclass(frozen=True, kw_only=True)
class RunsConfig:
    """The folder of the runs."""

    root: str = setting("runs", by_position=True)
    """Folder that is searched for run directories; the name of the flag may be left out."""


@dataclass(frozen=True)
class RunSummary:
    """One row of the table."""

    path: Path
    state: str
    """training, done, stopped or unreadable."""
    preset: str
    step: int
    steps: int | None
    loss: float | None
    """Last held-out loss, in nats per token."""
    bits_per_byte: float | None


def main(config: RunsConfig) -> None:
    """List the training and fine-tuning runs below a folder, with state, steps and held-out loss."""
    root = Path(config.root)
    if not root.is_dir():
        raise ValueError(f"root: found no folder {root}; name the one that holds your runs with --root")
    found = list_runs(root)
    console = make_console()
    if not found:
        console.print(f"{root}: found no run")
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("run", "state", "model"):
        table.add_column(heading)
    for heading in ("step", "held-out", "bits/byte"):
        table.add_column(heading, justify="right")
    for run in found:
        table.add_row(
            str(run.path),
            run.state,
            run.preset,
            f"{run.step:,}" if run.steps is None else f"{run.step:,}/{run.steps:,}",
            "-" if run.loss is None else f"{run.loss:.4f}",
            "-" if run.bits_per_byte is None else f"{run.bits_per_byte:.4f}",
        )
    console.print(table)


def list_runs(root: Path) -> list[RunSummary]:
    """Return the runs below a folder, sorted by path."""
    files = sorted(path for name in SETTINGS_FILES for path in root.rglob(name) if path.is_file())
    return [summarize(path.parent, path.name) for path in files]


def summarize(path: Path, settings_file: str) -> RunSummary:
    """Return the state of a run by what it has written; a damaged file makes it unreadable, not an error."""
    run = RunDirectory(path)
    try:
        settings, lines = read_settings(path, settings_file), read_metrics(run.metrics)
    except (ValueError, OSError):
        return RunSummary(path, "unreadable", "", 0, None, None, None)
    evaluated: dict[str, Any] = next((line for line in reversed(lines) if "val/loss" in line), {})
    checkpoints = checkpoint_steps(run.checkpoints) if run.checkpoints.is_dir() else []
    step, steps = (
        max([*checkpoints, *(line["step"] for line in lines[-1:])], default=0),
        settings.get("num_train_steps"),
    )
    # The result of a run that is continued stays until the new one is there.
    is_done = (run.artifact.exists() or run.adapters.exists()) and (not steps or step >= steps)
    state = "training" if _is_locked(path / LOCK) else "done" if is_done else "stopped"
    return RunSummary(
        path,
        state,
        str(settings.get("preset") or settings.get("method")),
        step,
        steps,
        evaluated.get("val/loss"),
        evaluated.get("val/bits_per_byte"),
    )


def _is_locked(path: Path) -> bool:
    """Return True if a trainer is at work in the directory."""
    if not path.is_file():
        return False
    with path.open(encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
