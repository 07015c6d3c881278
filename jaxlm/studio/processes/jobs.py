"""Jobs: commands of the project in processes of their own, known by their files alone.

A job is a folder with its commands (job.json), its log (log.txt) and, once it has ended, its exit status. A lock that
its processes hold says whether it runs; a studio that is killed and started again finds the same jobs.
"""

import contextlib
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from jaxlm.common.next_command import next_command
from jaxlm.studio.processes.job_process import ENDED, JOB, PROGRESS, STOP, write_json
from jaxlm.studio.reading.file_lock import is_locked
from jaxlm.studio.reading.folders import free_name

State = Literal["running", "done", "failed", "stopped", "killed"]
LOG, LOCK = "log.txt", "lock"
# Words of the environment that no command needs: the studio's own key.
KEY_VARIABLE = "JAXLM_STUDIO_KEY"


@dataclass(frozen=True)
class Command:
    """One command of jaxlm or mlxlm: its name, such as `train`, `models add` or `mlx-finetune`, and its words."""

    name: str
    words: tuple[str, ...]

    @property
    def argv(self) -> list[str]:
        """The words of the process, of this interpreter."""
        package, name = (
            ("mlxlm", self.name.removeprefix("mlx-")) if self.name.startswith("mlx-") else ("jaxlm", self.name)
        )
        return [sys.executable, "-m", package, *name.split(), *self.words]

    @property
    def line(self) -> str:
        """The command as a person types it in a shell."""
        first, *others = self.name.split()
        return next_command(first, *others, *self.words)


@dataclass(frozen=True)
class Job:
    """A job by its folder."""

    folder: Path

    @cached_property
    def record(self) -> Mapping[str, Any]:
        """Record of what was started: kind, title, subject (a path), commands, time."""
        return json.loads((self.folder / JOB).read_text("utf-8"))

    @property
    def name(self) -> str:
        """Name of the folder, by which pages call the job."""
        return self.folder.name

    @property
    def log(self) -> Path:
        """File of all output."""
        return self.folder / LOG

    @property
    def lines(self) -> list[str]:
        """Commands as a person types them."""
        return list(self.record["shown"])

    @property
    def codes(self) -> list[int] | None:
        """Exit status of each command that ended, None while the job is not over or was killed."""
        try:
            return list(json.loads((self.folder / ENDED).read_text("utf-8"))["codes"])
        except (OSError, ValueError, KeyError):
            return None

    @property
    def state(self) -> State:
        """State by the lock and the files."""
        if is_locked(self.folder / LOCK):
            return "running"
        codes, is_stopped = self.codes, (self.folder / STOP).exists()
        if codes is None:
            return "killed"
        if is_stopped:
            return "stopped"
        return "failed" if any(codes) else "done"

    @property
    def pid(self) -> int | None:
        """Process of the command that runs now, None where none does."""
        try:
            found = int(json.loads((self.folder / PROGRESS).read_text("utf-8"))["pid"])
        except (OSError, ValueError, KeyError):
            return None
        return found if is_locked(self.folder / LOCK) else None

    def stop(self) -> None:
        """Ask the command to finish: a training saves first. Commands after it are not begun."""
        (self.folder / STOP).touch()
        if (pid := self.pid) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def kill(self) -> None:
        """End all processes of the job at once."""
        (self.folder / STOP).touch()
        if (pid := self.pid) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(os.getpgid(pid), signal.SIGKILL)


class Jobs:
    """The jobs below one folder."""

    def __init__(self, folder: Path):
        self._folder = folder

    def start(self, kind: str, title: str, subject: Path | None, commands: Sequence[Command], *, cwd: Path) -> Job:
        """Start commands one after another in a process of its own session. `subject` is what they write."""
        return self._start(kind, title, subject, commands, cwd, {}, tied=False)

    def start_tied(
        self, kind: str, title: str, subject: Path, command: Command, *, cwd: Path, environment: Mapping[str, str]
    ) -> Job:
        """Start a command that ends when this process does, such as the server of a model."""
        return self._start(kind, title, subject, [command], cwd, environment, tied=True)

    def _start(
        self,
        kind: str,
        title: str,
        subject: Path | None,
        commands: Sequence[Command],
        cwd: Path,
        environment: Mapping[str, str],
        *,
        tied: bool,
    ) -> Job:
        self._folder.mkdir(parents=True, exist_ok=True)
        folder = self._folder / free_name(self._folder, f"{time.strftime('%Y%m%d-%H%M%S')}-{kind}")
        folder.mkdir()
        record = {
            "kind": kind,
            "title": title,
            "subject": None if subject is None else str(subject),
            "commands": [command.argv for command in commands],
            "shown": [command.line for command in commands],
            "cwd": str(cwd),
            "started": time.time(),
        }
        write_json(folder / JOB, record)
        with (folder / LOCK).open("w") as lock, (folder / LOG).open("ab") as log:
            fcntl.flock(lock, fcntl.LOCK_EX)  # held by the processes that inherit the descriptor, until the last ends
            child = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "jaxlm.studio.processes.job_process",
                    str(folder),
                    *(["--tied"] if tied else []),
                ],
                stdin=subprocess.PIPE if tied else subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=cwd,
                env={**_environment(), **environment} | {"JAXLM_JOB_LOCK": str(lock.fileno())},
                pass_fds=(lock.fileno(),),
                start_new_session=True,
            )
        threading.Thread(target=_reap, args=(child,), daemon=True).start()
        return Job(folder)

    def all(self) -> list[Job]:
        """Return the jobs, the newest first."""
        if not self._folder.is_dir():
            return []
        found = [Job(path) for path in sorted(self._folder.iterdir(), reverse=True) if (path / JOB).is_file()]
        return [job for job in found if _is_readable(job)]

    def get(self, name: str) -> Job:
        """Return a job by its name. Raises ValueError where there is none."""
        for job in self.all():
            if job.name == name:
                return job
        raise ValueError(f"job: found no job {name!r}")

    def of(self, subject: Path, kind: str | None = None) -> list[Job]:
        """Return the jobs that write or read a path, the newest first."""
        wanted = str(subject)
        return [
            job
            for job in self.all()
            if job.record.get("subject") == wanted and (kind is None or job.record["kind"] == kind)
        ]


def split_words(text: str) -> tuple[str, ...]:
    """Return the words of a command line, as a shell splits them. Raises ValueError on a quote that does not end."""
    return tuple(shlex.split(text))


def _reap(child: subprocess.Popen[bytes]) -> None:
    """Wait for a process, so that nothing is left of it in the table of processes."""
    child.wait()
    if child.stdin is not None:
        child.stdin.close()


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != KEY_VARIABLE}
    return kept | {"PYTHONUNBUFFERED": "1", "NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "140"}


def _is_readable(job: Job) -> bool:
    try:
        return isinstance(job.record["shown"], list) and isinstance(job.record["kind"], str)
    except (OSError, ValueError, KeyError, TypeError):
        return False
