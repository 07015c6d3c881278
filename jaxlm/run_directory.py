"""A run's directory: its lock, its config, its metrics."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from jaxlm.spec.manifest import refuse_inside_sealed, write_file
from jaxlm.train_config import RESUMABLE_CHANGES, TrainConfig

CONFIG = "config.yaml"
LOCK = "run.lock"


@dataclass(frozen=True)
class RunDirectory:
    """Where a run keeps its files."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        return self.path / "samples.txt"

    @property
    def loss_plot(self) -> Path:
        return self.path / "loss.png"

    @property
    def artifact(self) -> Path:
        return self.path / "artifact"


class MetricsLog:
    """metrics.jsonl, one line a step. Opening it forgets what came after `last_step` and a line cut short."""

    def __init__(self, path: Path, last_step: int):
        self._path = path
        kept = [line for line in read_metrics(path) if line["step"] <= last_step]
        write_file(path, "".join(map(_json_line, kept)).encode())
        self._last: dict[str, Any] = kept[-1] if kept else {}

    def write(self, values: dict[str, Any]) -> None:
        """Add a line, or add to the last one where it is of the same step."""
        with self._path.open("r+", encoding="utf-8") as file:
            end = file.seek(0, os.SEEK_END)
            if self._last.get("step") == values["step"]:
                end -= len(_json_line(self._last))
                values = self._last | values
            file.seek(end)
            file.truncate()
            file.write(_json_line(values))
        self._last = values


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line cut short by a kill is left out."""
    if not path.is_file():
        return []
    lines = path.read_text("utf-8").split("\n")[:-1]
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise ValueError(f"{path}: holds a line that is not JSON ({error}); repair it or move the file away") from error


def _json_line(values: dict[str, Any]) -> str:
    return json.dumps(values) + "\n"


def is_run_directory(path: Path) -> bool:
    return (path / CONFIG).is_file()


def read_config(path: Path) -> dict[str, Any]:
    """The resolved config of a run, as plain values."""
    try:
        content = yaml.safe_load((path / CONFIG).read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path / CONFIG}: not YAML: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise ValueError(f"{path / CONFIG}: expected the settings of a run with a 'model' among them")
    return content


@contextlib.contextmanager
def open_run(config: TrainConfig, model_fields: dict[str, Any]) -> Iterator[RunDirectory]:
    """Create a run directory, or open it again with `config.resume`, and hold its lock.

    The resolved config (all model fields filled in) is written before anything else. Raises ValueError where
    the directory is in use, holds a run and resume was not asked for, or holds a run of another config.
    """
    path = Path(config.output_dir)
    exists = is_run_directory(path)
    if config.resume and not exists:
        raise ValueError(
            f"{path}: found no run to resume (no {CONFIG}); of a run that was moved, name its new place with "
            "--output_dir; else start without --resume"
        )
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path}: is a file, expected a directory to create")
    if not exists and path.is_dir() and any(path.iterdir()):
        raise ValueError(f"{path}: is not empty and holds no run; choose another output_dir")
    refuse_inside_sealed(path)
    path.mkdir(parents=True, exist_ok=True)
    with _locked(path / LOCK):
        if exists and not config.resume:
            raise ValueError(
                f"{path}: already holds a run; continue it with --resume true or choose another output_dir"
            )
        # As the file has it: tuples are lists there.
        resolved = yaml.safe_load(yaml.safe_dump(asdict(config) | {"model": model_fields}))
        del resolved["distributed"]  # of this start, not of the run
        if exists:
            _check_same_run(path, read_config(path), resolved)
        text = yaml.safe_dump(resolved | {"resume": False}, sort_keys=False, allow_unicode=True)
        write_file(path / CONFIG, text.encode())
        yield RunDirectory(path)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise ValueError(
                f"{path.parent}: another trainer is at work here ({owner}); wait for it or stop it"
            ) from error
        file.truncate(0)
        file.write(f"pid {os.getpid()} boot {_boot_id()}\n")
        file.flush()
        yield


def _boot_id() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.is_file() else "unknown"


def _check_same_run(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    differences = [
        f"{name} was {old!r} and is now {new!r}"
        for name, old, new in _differences(before, now)
        if name.partition(".")[0] not in RESUMABLE_CHANGES
    ]
    if differences:
        raise ValueError(
            f"{path}: belongs to another config: {'; '.join(differences)}. Resume with "
            f"--config {path / CONFIG} or choose another output_dir"
        )


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    for name in sorted(set(before) | set(now)):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{prefix}{name}.")
        elif old != new:
            yield f"{prefix}{name}", old, new
