"""The result of a run (artifact or adapters): written next to its place, verified, then moved there."""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxlm.common.run.complete_checkpoints import DAMAGED, quarantine
from shared_tokenizer.manifest import MANIFEST, DamagedError, verify_manifest


def new_result(result: Path) -> Path:
    """Return the place to write a result to before it is moved to `result`; an earlier attempt there is removed."""
    new = result.with_name(f"{result.name}.new")
    if new.exists():
        shutil.rmtree(new)
    return new


def place_result(new: Path, result: Path, changes: Sequence[dict[str, Any]], log: Callable[[str], None]) -> None:
    """Verify a sealed directory and move it to `result`. `changes` are those of the run's number of steps.

    A result that is there already stays if it is the same. Another one, of the run before it was continued, is kept
    under another name; a damaged one is moved to `damaged/`. Raises DamagedError where the new one is damaged.
    """
    verify_manifest(new)
    if result.is_dir() and any(result.iterdir()):
        try:
            verify_manifest(result)
        except DamagedError as error:
            quarantined = quarantine(result, result.parent / DAMAGED, log)
            log(f"{result} was damaged and is written anew, the damaged one is in {quarantined}: {error}")
        else:
            if (new / MANIFEST).read_bytes() == (result / MANIFEST).read_bytes():
                shutil.rmtree(new)
                return
            kept = _free_name(result, f"step-{changes[-1]['from']}" if changes else "before")
            result.rename(kept)
            log(f"{result} is replaced; the one before is kept as {kept}")
    os.replace(new, result)


def _free_name(result: Path, suffix: str) -> Path:
    kept = result.with_name(f"{result.name}-{suffix}")
    while kept.exists():
        kept = kept.with_name(f"{kept.name}-again")
    return kept
