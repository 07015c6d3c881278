"""The checkpoints of a run on disk, one sealed directory a step; one that is not whole does not count."""

from collections.abc import Callable
from pathlib import Path

from shared_tokenizer.manifest import DamagedError, verify_manifest


def checkpoint_steps(directory: Path) -> list[int]:
    """The steps that there are directories of, in order."""
    return sorted(int(path.name) for path in directory.glob("*") if path.is_dir() and path.name.isdigit())


def set_aside_damaged(directory: Path, say: Callable[[str], None]) -> None:
    """Move checkpoints that are not whole out of the way, so that the run can save these steps again."""
    for step in checkpoint_steps(directory):
        try:
            verify_manifest(directory / str(step))
        except DamagedError as error:
            aside = directory.parent / "damaged" / str(step)
            aside.parent.mkdir(exist_ok=True)
            while aside.exists():
                aside = aside.with_name(aside.name + "-again")
            (directory / str(step)).rename(aside)
            say(f"checkpoint {step} is not whole and was moved to {aside}: {error}")
