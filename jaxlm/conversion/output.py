"""The place that a conversion writes to: beside the final one, which takes a model only once it is complete."""

import contextlib
import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from shared_tokenizer.locks import LockedError, locked_file
from shared_tokenizer.manifest import refuse_inside_sealed, sealed_directory

Form = Literal["packed", "latent", "dequantized", "mlx", "gguf"]
REPORT = "conversion.json"
# Ending of a GGUF that has not been compared with its source yet.
_UNVERIFIED = ".unverified"
_LOCK = ".lock"


def report_path(destination: Path, form: Form) -> Path:
    """Return the path of the report of a conversion: in the directory written, or next to the GGUF."""
    return destination.with_suffix(f".{REPORT}") if form == "gguf" else destination / REPORT


@contextlib.contextmanager
def atomic_output(destination: Path, form: Form) -> Iterator[Path]:
    """Yield the path to write to, beside its final place: a directory that is sealed, or a GGUF, at the end.

    What a killed conversion to a GGUF has left there is removed.
    """
    if form != "gguf":
        with sealed_directory(destination) as temporary:
            yield temporary
        return
    _refuse_existing(destination)
    refuse_inside_sealed(destination)
    temporary = destination.with_name(f".{destination.name}{_UNVERIFIED}")
    with _locked(temporary, destination):
        _refuse_existing(destination)  # of a process that has just ended
        _remove_leftovers(temporary)
        try:
            yield temporary
            # The report first: with it a GGUF is complete.
            os.replace(begun_report(temporary, form), report_path(destination, form))
            os.replace(temporary, destination)
        except BaseException:
            _remove_leftovers(temporary)
            raise


def _refuse_existing(destination: Path) -> None:
    if destination.exists():
        raise ValueError(f"{destination}: already exists; remove it or choose another path")


@contextlib.contextmanager
def _locked(temporary: Path, destination: Path) -> Iterator[None]:
    """Lock out other conversions to the same file. Raises ValueError where another process holds the lock."""
    path = temporary.with_name(f"{temporary.name}{_LOCK}")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked_file(path))
        except LockedError:
            raise ValueError(f"{destination}: another process is writing it; wait for it to end") from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def begun_report(output: Path, form: Form) -> Path:
    """Return the path of the report until the model is in its place."""
    return output.with_name(f"{output.name}.{REPORT}") if form == "gguf" else output / REPORT


def _remove_leftovers(temporary: Path) -> None:
    """Remove an unverified GGUF and its report, and what their writers had begun."""
    name = glob.escape(temporary.name)
    for path in (*temporary.parent.glob(f"{name}*"), *temporary.parent.glob(f".{name}*")):
        if not path.name.endswith(_LOCK):
            path.unlink(missing_ok=True)
