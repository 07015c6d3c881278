"""The directory of a run: its files, its lock, its settings."""

import contextlib
import fcntl
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from shared_tokenizer.manifest import refuse_inside_sealed, write_file
from shared_tokenizer.settings import resumable_fields, with_new_names

CONFIG = "config.yaml"
LOCK = "run.lock"


@dataclass(frozen=True)
class RunDirectory:
    """The places of a run's files."""

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

    @property
    def adapters(self) -> Path:
        return self.path / "adapters"

    @property
    def data(self) -> Path:
        return self.path / "data"


def is_run_directory(path: Path, settings_file: str = CONFIG) -> bool:
    """Return True if a directory holds the settings of a run."""
    return (path / settings_file).is_file()


def read_settings(path: Path, settings_file: str = CONFIG) -> dict[str, Any]:
    """Read the resolved settings of a run, as plain values. Raises ValueError where the file holds no settings."""
    try:
        content = yaml.safe_load((path / settings_file).read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path / settings_file}: not YAML: {error}") from error
    if not isinstance(content, dict) or "model" not in content:
        raise ValueError(f"{path / settings_file}: expected the settings of a run with a 'model' among them")
    return content


def read_run_config(path: Path) -> dict[str, Any]:
    """Read the resolved config of a training run, as plain values. Raises ValueError where it holds no model fields."""
    content = read_settings(path)
    if not isinstance(content["model"], dict):
        raise ValueError(f"{path}: found a model {content['model']!r} in its config, expected the fields of a model")
    return content


@contextlib.contextmanager
def open_run_directory(
    path: Path, settings_class: type, settings: Mapping[str, Any], *, resume: bool, settings_file: str = CONFIG
) -> Iterator[RunDirectory]:
    """Create a run directory, or open it again with `resume`, and hold its lock.

    The settings are written before anything else; the fields of their class say which ones a resumed run may have anew.
    Raises ValueError where the directory is in use, holds a run and resume was not asked for, or holds a run of other
    settings.
    """
    exists = is_run_directory(path, settings_file)
    if resume and not exists:
        raise ValueError(
            f"{path}: found no run to resume (no {settings_file}); of a run that was moved, name its new place with "
            "--output_dir; else start without --resume"
        )
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path}: is a file, expected a directory to create")
    if not exists and path.is_dir() and any(path.iterdir()):
        raise ValueError(f"{path}: is not empty and holds no run; choose another output_dir")
    refuse_inside_sealed(path)
    path.mkdir(parents=True, exist_ok=True)
    with _locked(path / LOCK):
        if exists and not resume:
            raise ValueError(f"{path}: already holds a run; continue it with --resume or choose another output_dir")
        # As the file has it: tuples are lists there.
        resolved = yaml.safe_load(yaml.safe_dump({**settings, "resume": resume}))
        if exists:
            before = with_new_names(settings_class, read_settings(path, settings_file))
            _check_same_run(path / settings_file, before, resolved, resumable_fields(settings_class))
        text = yaml.safe_dump(resolved | {"resume": False}, sort_keys=False, allow_unicode=True)
        write_file(path / settings_file, text.encode())
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


def _check_same_run(settings: Path, before: dict[str, Any], now: dict[str, Any], may_change: Collection[str]) -> None:
    differences = [
        f"{name} was {old!r} and is now {new!r}"
        for name, old, new in _differences(before, now)
        if name.partition(".")[0] not in may_change
    ]
    if differences:
        raise ValueError(
            f"{settings.parent}: belongs to another config: {'; '.join(differences)}. Resume with "
            f"--config {settings} or choose another output_dir"
        )


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    for name in sorted(set(before) | set(now)):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{prefix}{name}.")
        elif old != new:
            yield f"{prefix}{name}", old, new
