"""The checkpoints of a run on disk: one sealed directory per step.

A checkpoint is complete if its manifest holds. Any other checkpoint is damaged: a kill interrupted the save, or the
disk changed a file.
"""

import contextlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from shared_tokenizer.manifest import DamagedError, verify_manifest

DAMAGED = "damaged"
FINGERPRINTS = ("model", "teacher", "data", "tokenizer")
# Damaged directories of a run that are kept to be looked at; each may be as large as a checkpoint.
KEEP_DAMAGED = 3
_QUARANTINED = re.compile(r"(\d+|artifact|adapters)(-again)*")


def checkpoint_steps(directory: Path) -> list[int]:
    """Return the steps that have a directory, in order."""
    return sorted(int(path.name) for path in directory.glob("*") if path.is_dir() and path.name.isdigit())


def checkpoint_fingerprints(directory: Path) -> dict[str, str]:
    """Return the fingerprints that the newest checkpoint was saved with, of either trainer; empty where there is none.

    Runs of earlier versions hold them nowhere else.
    """
    for step in reversed(checkpoint_steps(directory)):
        for name in ("meta/metadata", "state.json"):
            with contextlib.suppress(OSError, ValueError, AttributeError):  # damaged: the one before
                content = json.loads((directory / str(step) / name).read_text("utf-8"))
                return {what: content[what] for what in FINGERPRINTS if isinstance(content.get(what), str)}
    return {}


def quarantine_damaged(directory: Path, log: Callable[[str], None]) -> None:
    """Move damaged checkpoints to `damaged/` next to `directory`, so that the run can save these steps again."""
    for step in checkpoint_steps(directory):
        try:
            verify_manifest(directory / str(step))
        except DamagedError as error:
            quarantined = quarantine(directory / str(step), directory.parent / DAMAGED, log)
            log(f"checkpoint {step} is damaged and was moved to {quarantined}: {error}")


def quarantine(path: Path, damaged: Path, log: Callable[[str], None]) -> Path:
    """Move a damaged directory into `damaged`, and return its new place. The oldest beyond KEEP_DAMAGED are removed."""
    quarantined = damaged / path.name
    damaged.mkdir(exist_ok=True)
    while quarantined.exists():
        quarantined = quarantined.with_name(quarantined.name + "-again")
    path.rename(quarantined)
    quarantined.touch()  # the order in which they came
    ours = [each for each in damaged.iterdir() if _QUARANTINED.fullmatch(each.name) and not each.is_symlink()]
    for old in sorted(ours, key=lambda each: each.stat().st_mtime_ns)[:-KEEP_DAMAGED]:
        shutil.rmtree(old) if old.is_dir() else old.unlink()
        log(f"{old}: removed, {damaged} keeps the last {KEEP_DAMAGED}")
    return quarantined


def directory_id(directory: Path) -> tuple[int, int] | None:
    """Return what tells a directory from another one of its name; None where it is gone."""
    try:
        found = directory.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
