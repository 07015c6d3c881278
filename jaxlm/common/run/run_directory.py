"""The directory of a run: its files, its lock, its identity and settings."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from jaxlm.common.run.begun_files import holds_only_begun_files, remove_leftovers
from jaxlm.common.run.complete_checkpoints import checkpoint_fingerprints, checkpoint_steps, directory_id
from jaxlm.common.run.identity import IDENTITY, RunIdentity, read_identity, write_identity
from jaxlm.common.run.same_run import check_same_settings, check_settings_file
from jaxlm.common.tracker_names import TRACKERS
from shared_tokenizer.locks import LockedError, locked_file
from shared_tokenizer.manifest import refuse_inside_sealed, write_file
from shared_tokenizer.settings import resumable_fields, with_defaults, with_new_names

CONFIG = "config.yaml"
# The settings files of a training run and of a fine-tuning run.
SETTINGS_FILES = (CONFIG, "finetune.yaml")
LOCK = "run.lock"
_NO_YAML = (yaml.YAMLError, ValueError, RecursionError)


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
    def reward_plot(self) -> Path:
        return self.path / "reward.png"

    @property
    def log(self) -> Path:
        return self.path / "run.log"

    @property
    def artifact(self) -> Path:
        return self.path / "artifact"

    @property
    def adapters(self) -> Path:
        return self.path / "adapters"

    @property
    def data(self) -> Path:
        return self.path / "data"

    @property
    def reference(self) -> Path:
        return self.path / "reference"

    @property
    def steps_saved(self) -> int:
        """Step of the newest checkpoint, complete or not; 0 where there is none."""
        return max(checkpoint_steps(self.checkpoints), default=0)


def is_run_directory(path: Path, settings_file: str = CONFIG) -> bool:
    """Return True if a directory holds the settings of a run."""
    return (path / settings_file).is_file()


def settings_file_of(path: Path) -> str:
    """Return the name of the settings file of a training or fine-tuning run. Raises ValueError where there is none."""
    found = next((name for name in SETTINGS_FILES if (path / name).is_file()), None)
    if found is None:
        raise ValueError(f"{path}: found no {' and no '.join(SETTINGS_FILES)}, expected the directory of a run")
    return found


def read_settings(path: Path, settings_file: str = CONFIG) -> dict[str, Any]:
    """Read the resolved settings of a run, as plain values. Raises ValueError where the file holds no settings."""
    try:
        content = yaml.safe_load((path / settings_file).read_text("utf-8"))
    except _NO_YAML as error:
        raise ValueError(f"{path / settings_file}: not YAML: {error}") from error
    if not isinstance(content, dict) or "model" not in content:
        raise ValueError(f"{path / settings_file}: expected the settings of a run with a 'model' among them")
    return content


def read_run_config(path: Path) -> dict[str, Any]:
    """Read the resolved config of a training run, as plain values.

    Raises ValueError where it holds no model fields, or not those that the trainer wrote.
    """
    content = read_settings(path)
    if not isinstance(content["model"], dict):
        raise ValueError(f"{path}: found a model {content['model']!r} in its config, expected the fields of a model")
    identity = read_identity(path)
    if identity is not None and not identity.knows((path / CONFIG).read_bytes()):
        check_settings_file(path / CONFIG, identity, content, {"model": content["model"]})
    return content


def recorded_settings(path: Path, settings_class: type, settings_file: str) -> dict[str, Any] | None:
    """Return the settings of a run as its identity or, in an earlier version, its settings file holds them.

    None where there is neither. Raises ValueError where they cannot be read.
    """
    identity = read_identity(path)
    if identity is not None:
        return with_defaults(settings_class, identity.settings)
    if not is_run_directory(path, settings_file):
        return None
    return with_defaults(settings_class, with_new_names(settings_class, read_settings(path, settings_file)))


@contextlib.contextmanager
def open_run_directory(
    path: Path,
    settings_class: type,
    settings: Mapping[str, Any],
    *,
    resume: bool,
    settings_file: str = CONFIG,
    fingerprints: Mapping[str, str] | None = None,
    check: Callable[[RunDirectory], None] = lambda run: None,
    log: Callable[[str], None] = lambda line: None,
) -> Iterator[RunDirectory]:
    """Create a run directory, or open it again with `resume`, and hold its lock.

    The identity is written before anything else, then the settings; the fields of their class say which ones a resumed
    run may have anew. With `fingerprints` None, which are not known yet, only the identity is written, and the caller
    calls `record_run` later. `check` may refuse a run that is opened again, before anything of it is written. A new
    directory that an error ends before the first step is taken away again.

    Raises ValueError where the directory is in use, holds a run and resume was not asked for, or holds a run of other
    settings, data or models.
    """
    exists = _holds_run(path, settings_file)
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path}: is a file, expected a directory to create")
    is_begun = not exists and path.is_dir() and any(path.iterdir()) and holds_only_begun_files(path)
    if resume and not exists and not is_begun:
        raise ValueError(
            f"{path}: found no run to resume (no {settings_file}); of a run that was moved, name its new place with "
            "--output_dir; else start without --resume"
        )
    if not exists and not is_begun and path.is_dir() and any(path.iterdir()):
        raise ValueError(f"{path}: is not empty and holds no run; choose another output_dir")
    refuse_inside_sealed(path)
    was_there = path.is_dir()
    path.mkdir(parents=True, exist_ok=True)
    with _locked(path / LOCK):
        if exists and not resume:
            raise ValueError(f"{path}: already holds a run; continue it with --resume or choose another output_dir")
        if is_begun and resume:
            log(f"{path}: an earlier start ended before its first step; the run starts anew")
        run, started_in = RunDirectory(path), directory_id(path)
        resolved = _as_in_a_file(settings)
        try:
            if exists:
                _check_same_run(run, settings_class, resolved, settings_file, fingerprints or {}, log)
                check(run)
            remove_leftovers(path, keep_data=exists or _is_begun_with(path, resolved))
            if fingerprints is None and not exists:
                write_identity(path, RunIdentity(resolved))
            elif fingerprints is not None:
                record_run(run, settings, fingerprints, settings_file)
            yield run
        except (ValueError, OSError, MemoryError, RuntimeError) as error:  # a compiler's errors are RuntimeErrors
            if directory_id(path) != started_in:
                raise OSError(
                    f"{path}: was moved or removed while the run was at work; resume it with --output_dir and its new "
                    f"place ({error})"
                ) from error
            if not exists and run.steps_saved == 0 and not (run.metrics.is_file() and run.metrics.stat().st_size):
                _take_away(run, settings_file, with_folder=not was_there)
            raise


def record_run(
    run: RunDirectory, settings: Mapping[str, Any], fingerprints: Mapping[str, str], settings_file: str = CONFIG
) -> None:
    """Write the identity of a run, then its settings file. Raises ValueError where it belongs to other data or models.

    A kill between the two leaves an identity that knows both the settings file before and the one after.
    """
    resolved = _as_in_a_file(settings)
    known = read_identity(run.path) or RunIdentity(resolved, checkpoint_fingerprints(run.checkpoints))
    known.check_fingerprints(run.path, fingerprints)
    text = yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True).encode()
    identity = RunIdentity(resolved, {**known.fingerprints, **fingerprints}, known.settings_digests).wrote(text)
    write_identity(run.path, identity)
    write_file(run.path / settings_file, text)


def _as_in_a_file(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as the file has them: tuples are lists there, and to resume is no setting of the run."""
    return yaml.safe_load(yaml.safe_dump({**settings, "resume": False}, sort_keys=False))


def _holds_run(path: Path, settings_file: str) -> bool:
    """Return True if a directory holds a run, also one that has lost its settings file but not its identity."""
    if is_run_directory(path, settings_file):
        return True
    return (path / IDENTITY).is_file() and RunDirectory(path).steps_saved > 0


def _is_begun_with(path: Path, settings: Mapping[str, Any]) -> bool:
    """Return True if an earlier start of the same settings has begun in a directory."""
    try:
        identity = read_identity(path)
    except ValueError:
        return False
    return identity is not None and identity.settings == settings


def _check_same_run(
    run: RunDirectory,
    settings_class: type,
    now: dict[str, Any],
    settings_file: str,
    fingerprints: Mapping[str, str],
    log: Callable[[str], None],
) -> None:
    path, identity = run.path / settings_file, read_identity(run.path)
    if identity is None:  # of an earlier version
        before = read_settings(run.path, settings_file)
    else:
        identity.check_fingerprints(run.path, fingerprints)
        before = identity.settings
        if path.is_file() and not identity.knows(path.read_bytes()):
            changed = ""
            try:
                content = yaml.safe_load(path.read_text("utf-8"))
            except _NO_YAML:
                pass  # whatever is given now is not from there
            else:
                content = content if isinstance(content, dict) else {}
                changed = check_settings_file(path, identity, content, now, resumable_fields(settings_class))
            log(f"note: {path}: was changed since it was written: {changed or 'nothing that has an effect'}")
    before = with_defaults(settings_class, with_new_names(settings_class, before))
    check_same_settings(path, settings_class, before, now)


def _take_away(run: RunDirectory, settings_file: str, *, with_folder: bool) -> None:
    """Remove what a start that was refused has written, and nothing else."""
    for path in (run.path / settings_file, run.path / IDENTITY, run.metrics, run.samples, run.log, run.path / LOCK):
        path.unlink(missing_ok=True)
    for path in (run.checkpoints, run.tokenizer, run.data, run.reference, *(run.path / name for name in TRACKERS)):
        shutil.rmtree(path, ignore_errors=True)
    remove_leftovers(run.path, keep_data=False)
    if with_folder:
        with contextlib.suppress(OSError):  # something else is in it
            run.path.rmdir()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(locked_file(path))
        except LockedError as error:
            owner = str(error) or "another process"
            raise ValueError(
                f"{path.parent}: another trainer is at work here ({owner}); wait for it or stop it"
            ) from error
        with contextlib.suppress(OSError):  # the lock holds without the line, also on a full disk
            file.truncate(0)
            file.write(f"pid {os.getpid()} boot {_boot_id()}\n")
            file.flush()
        yield


def _boot_id() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.is_file() else "unknown"
