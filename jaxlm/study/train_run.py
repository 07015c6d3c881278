"""One run of a study, in a process of its own: trained, resumed where it was interrupted, then evaluated."""

import contextlib
import datetime
import functools
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from jaxlm.commands.runs import summarize
from jaxlm.common.run.run_directory import CONFIG
from jaxlm.ops.machine.cpu import processor_features
from jaxlm.study.study import StudyRun
from shared_tokenizer.manifest import write_file

# Files of a study in a run directory.
COSTS, FAILURE, EVALUATION = "study-costs.jsonl", "study-failure.txt", "evaluation.json"
# Exit status of a command that has told its error in one line.
_TOLD = 2


@dataclass(frozen=True)
class Job:
    """A run and the folder of the study's runs. It may be done on another machine that sees the same files."""

    run: StudyRun
    runs: Path
    report_to: tuple[str, ...] = ()
    """Trackers that the training reports to."""

    @property
    def directory(self) -> Path:
        return self.run.directory(self.runs)

    @property
    def settings_file(self) -> Path:
        """File of the settings that the run was begun with."""
        return self.directory.with_name(f"{self.directory.name}.yaml")

    @property
    def output_file(self) -> Path:
        """File of what its commands print."""
        return self.directory.with_name(f"{self.directory.name}.log")


def do_run(job: Job) -> float:
    """Train a run to its end and evaluate it; what is done already is not done again. Returns the seconds it took.

    The error of a run that diverges is written into its directory: it counts among the results. Raises ValueError where
    a run fails otherwise, was begun with other settings, or was stopped.
    """
    start = time.monotonic()
    if not _is_trained(job):
        settings = job.run.settings(job.runs)
        job.settings_file.parent.mkdir(parents=True, exist_ok=True)
        write_file(job.settings_file, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).encode())
        flags = ["--resume", "true"] if (job.directory / CONFIG).is_file() else []
        if job.report_to:
            flags += ["--report_to", ",".join(job.report_to)]
        error = _timed(job, "train", ["--config", str(job.settings_file), *flags])
        if error is not None:
            if not error.startswith("step "):  # so begins what the trainer says of a run that diverges
                raise ValueError(f"{job.directory}: {error}")
            write_file(job.directory / FAILURE, error.encode())
            return time.monotonic() - start
        if not _is_trained(job):
            raise ValueError(f"{job.directory}: was stopped before its last step; start the study again to go on")
    if job.run.study.evaluate is not None:
        flags = [word for name, value in job.run.study.evaluate.items() for word in (f"--{name}", _as_word(value))]
        into = str(job.directory / EVALUATION)
        error = _timed(job, "evaluate", ["--model", str(job.directory), "--json", into, *flags])
        if error is not None:
            raise ValueError(f"{job.directory}: {error}")
    return time.monotonic() - start


def has_ended(job: Job) -> bool:
    """Return True if nothing of a run is left to do. Raises ValueError where it was begun with other settings."""
    is_evaluated = job.run.study.evaluate is None or (job.directory / EVALUATION).is_file()
    return read_failure(job.directory) is not None or (_is_trained(job) and is_evaluated)


def read_failure(directory: Path) -> str | None:
    """Return the error that a run failed with; None for others. Whoever removes the run lets it be tried again."""
    path = directory / FAILURE
    return path.read_text("utf-8") if path.is_file() else None


def _is_trained(job: Job) -> bool:
    if not (job.directory / CONFIG).is_file():
        return False
    before, now = yaml.safe_load(job.settings_file.read_text("utf-8")), job.run.settings(job.runs)
    if changed := sorted(name for name in {*before, *now} if before.get(name) != now.get(name)):
        raise ValueError(
            f"{job.directory}: was begun with other settings ({', '.join(changed)}); give the study another output_dir "
            "or the variant another name, or remove the run"
        )
    return summarize(job.directory, CONFIG).state == "done"


def _as_word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _timed(job: Job, command: str, flags: Sequence[str]) -> str | None:
    """Run a command, and add its time and memory to the run's costs. Returns its error where it tells one.

    Raises ValueError where it ends otherwise.
    """
    start = time.monotonic()
    with job.output_file.open("ab") as output:
        begin = output.seek(0, os.SEEK_END)
        process = subprocess.Popen([sys.executable, "-m", "jaxlm", command, *flags], stdout=output, stderr=output)
        with _ended_with_this(process):
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
    if job.directory.is_dir():
        peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)  # kilobytes on Linux
        cost = {"command": command, "seconds": round(time.monotonic() - start, 1), "peak_bytes": peak} | _origin()
        with (job.directory / COSTS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(cost) + "\n")
    if process.returncode == 0:
        return None
    if process.returncode == _TOLD:
        with job.output_file.open("rb") as output:
            output.seek(begin)
            lines = output.read().decode("utf-8", "replace").splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        return errors[-1].removeprefix("error: ") if errors else f"{command} failed; see {job.output_file}"
    killed = ", perhaps for lack of memory" if process.returncode == -signal.SIGKILL else ""
    raise ValueError(
        f"{job.directory}: {command} ended with status {process.returncode}{killed}; see {job.output_file}. Start the "
        "study again to go on"
    )


@contextlib.contextmanager
def _ended_with_this(process: subprocess.Popen) -> Iterator[None]:
    """Let a process save what it has and end, when an exception leaves the block. Ctrl-C reaches it by itself."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, KeyboardInterrupt):
            process.terminate()
        process.wait()
        raise


@functools.cache
def _origin() -> dict[str, Any]:
    """Return what tells one machine's speed from another's, the date, and the commit that the code is of.

    The commit is None without git or in an installed package.
    """
    features = " ".join(processor_features()) or "no known features"
    try:
        asked = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
        commit = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=False).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        commit = None
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, {features}"
    return {"machine": machine, "date": datetime.date.today().isoformat(), "commit": commit}


def read_costs(directory: Path) -> list[dict[str, Any]]:
    """Return time in seconds, peak memory in bytes, machine, date and commit of each command that worked on a run."""
    path = directory / COSTS
    found = []
    for line in path.read_text("utf-8").splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError):  # a line that a kill cut short
            found.append(json.loads(line))
    return found
