"""Trackio: a database on this machine, or a Space of the Hugging Face hub where TRACKIO_SPACE_ID names one."""

import contextlib
import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import trackio  # pyright: ignore[reportMissingImports]

from jaxlm.common.trackers.tracker import TrackedRun
from shared_tokenizer.manifest import write_file

_ID = "run-id"


class Trackio:
    """A run of Trackio, written anew whenever the run is opened.

    In the database it replaces the one before; on a Space, which takes nothing back, it is another run.
    """

    sent = 0

    def __init__(self, run: TrackedRun):
        run.directory.mkdir(exist_ok=True)
        path, project = run.directory / _ID, os.environ.get("TRACKIO_PROJECT") or "jaxlm"
        with _silently():
            if path.is_file() and not os.environ.get("TRACKIO_SPACE_ID"):
                before = path.read_text("utf-8").strip()
                for found in trackio.Api().runs(project):
                    if found.id == before:
                        found.delete()
            # No folder of the hub's, no page in a notebook and no numbers of the machine.
            self._run = trackio.init(
                project=project,
                name=run.name,
                group=run.group,
                config=dict(run.config),
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        write_file(path, f"{self._run.id}\n".encode())

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def text(self, step: int, name: str, text: str) -> None:
        self._run.log({name: text}, step=step)

    def picture(self, step: int, name: str, path: Path) -> None:
        self._run.log({name: trackio.Image(str(path))}, step=step)

    def close(self, *, failed: bool) -> None:
        with _silently():
            self._run.finish()


def open_tracker(run: TrackedRun) -> Trackio:
    """Return the record of a run in Trackio."""
    return Trackio(run)


@contextlib.contextmanager
def _silently() -> Iterator[None]:
    """Keep the lines of Trackio off standard output, which belongs to the run."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
