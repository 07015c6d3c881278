"""The checkpoints of a run on disk: one sealed directory per step.

A checkpoint is complete if its manifest holds. Any other checkpoint is damaged: a kill interrupted the save, or the
disk changed a file.
"""

from collections.abc import Callable
from pathlib import Path

from shared_tokenizer.manifest import DamagedError, verify_manifest

DAMAGED = "damaged"


def checkpoint_steps(directory: Path) -> list[int]:
    """Return the steps that have a directory, in order."""
    return sorted(int(path.name) for path in directory.glob("*") if path.is_dir() and path.name.isdigit())


def quarantine_damaged(directory: Path, log: Callable[[str], None]) -> None:
    """Move damaged checkpoints to `damaged/` next to `directory`, so that the run can save these steps again."""
    for step in checkpoint_steps(directory):
        try:
            verify_manifest(directory / str(step))
        except DamagedError as error:
            quarantined = directory.parent / DAMAGED / str(step)
            quarantined.parent.mkdir(exist_ok=True)
            while quarantined.exists():
                quarantined = quarantined.with_name(quarantined.name + "-again")
            (directory / str(step)).rename(quarantined)
            log(f"checkpoint {step} is damaged and was moved to {quarantined}: {error}")
