"""Commands that are killed, or whose disk refuses: the same command afterwards gives the undisturbed result."""

import contextlib
import errno
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.commands import Command, start
from tests.faults.injected import Injection
from tests.faults.trial import Kind, Outcome
from tests.faults.workplace import (
    CONVERSIONS,
    FINETUNINGS,
    JOBS,
    MERGES,
    OTHER_TRAINING,
    PREPARATIONS,
    SAMPLE_ORDER,
    TOKENIZERS,
    TRAININGS,
    Job,
    Workplace,
    digest_run,
    last_step,
    names_left,
    read_lines,
)

LONGEST_S = 100
_NEVER_OVERWRITING = (*TOKENIZERS, *CONVERSIONS, *MERGES)
# Interruptions of one output, at most; then the command may end.
MOST_TIMES = 6
_REFUSALS = (errno.EACCES, errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# Kept aside on purpose; and the begun directory beside an output, which nobody can remove after SIGKILL.
_ALLOWED = re.compile(r"/damaged|\.output\.|/\.+model\.gguf\.")


@dataclass(frozen=True)
class Ended:
    """A command that has ended, and the last changes of files that it made."""

    code: int
    stdout: str
    stderr: str
    changes: list[str]

    def show(self) -> str:
        """Return the end of its output and its last change, in one line."""
        words = " ".join((self.stdout[-300:] + " | " + self.stderr[-600:]).split())
        return f"status {self.code}, after {self.changes[-1:]}: {words}"


class Pipes:
    """FIFOs that take the output of a command, whatever happens to the disk."""

    def __init__(self, folder: Path):
        self.paths = tuple(str(folder / name) for name in ("stdout", "stderr"))
        self._ends = []
        for path in self.paths:
            os.mkfifo(path)
            self._ends.append(os.open(path, os.O_RDWR | os.O_NONBLOCK))

    def read(self) -> tuple[str, str]:
        """Return what was written, and remove the FIFOs."""
        found = []
        for end, path in zip(self._ends, self.paths, strict=True):
            content = b""
            with contextlib.suppress(BlockingIOError):
                while block := os.read(end, 1 << 16):
                    content += block
            found.append(content.decode("utf-8", "replace"))
            os.close(end)
            os.unlink(path)
        return found[0], found[1]


def run_with(injection: Injection, words: Sequence[str], kill_after_s: float | None = None) -> Ended:
    """Run a command with a fault, or kill it after some time. Raises TimeoutExpired where it does not end."""
    pipes = Pipes(Path(injection.log).parent) if injection.outputs is not None else None
    with start(*injection.words(*words)) as command:
        if kill_after_s is not None:
            _kill_after(command, kill_after_s)
        code = command.wait(LONGEST_S)
        stdout, stderr = command.stdout, command.stderr
    if pipes is not None:
        stdout, stderr = pipes.read()
    log = Path(injection.log)
    changes = log.read_text("utf-8", "replace").splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return Ended(code, stdout, stderr, changes)


def _kill_after(command: Command, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and command.returncode is None:
        time.sleep(0.005)
    if command.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            command.send_signal(signal.SIGKILL)


def plain(folder: Path, output: Path) -> Injection:
    """Return no fault: the changes of files are only noted."""
    return Injection(root=str(output), log=str(folder / "changes.txt"))


def choose_moment(rng: np.random.Generator, changes: int) -> int:
    """Return the number of a change: any, the first ones and the last ones more often."""
    kind = rng.integers(4)
    if kind == 0:
        return int(rng.integers(1, min(20, changes) + 1))
    if kind == 1:
        return int(rng.integers(max(1, changes - 20), changes + 1))
    return int(rng.integers(1, changes + 1))


@contextlib.contextmanager
def watched(outcome: Outcome, what: str) -> Iterator[None]:
    """Turn a command that does not end into a failure."""
    try:
        yield
    except subprocess.TimeoutExpired:
        outcome.fail("hung", f"{what}: no end within {LONGEST_S} s")


def kill(job: Job, workplace: Workplace, folder: Path, rng: np.random.Generator) -> Outcome:
    """Kill a command at random moments, several times in a row, then let it finish."""
    outcome, output, reference = Outcome(), folder / "output", workplace.reference(job.name)
    with watched(outcome, job.name):
        for _ in range(int(rng.integers(1, MOST_TIMES + 1))):
            words, before = job.again(workplace, output), last_step(output)
            log = str(folder / "changes.txt")
            if rng.integers(3):
                injection = Injection(root=str(output), log=log, fault="kill", at=choose_moment(rng, reference.changes))
                ended = run_with(injection, words)
            else:
                ended = run_with(plain(folder, output), words, rng.uniform(0, reference.seconds))
            if ended.code != -signal.SIGKILL:
                if ended.code != 0 and not _is_complete(job, ended):
                    outcome.fail("lost", f"{' '.join(words)}: {ended.show()}")
                    return outcome
                break
            outcome.tried += 1
            outcome.places[_place(ended, output)] += 1
            _check_nothing_lost(outcome, output, before, ended)
        finish(outcome, job, workplace, folder)
    return outcome


def _place(ended: Ended, output: Path) -> str:
    """Return the file or folder of an output that was changed last."""
    if not ended.changes:
        return "nothing yet"
    # Of a temporary name, what it will be.
    path = re.sub(r"\.(\w[\w.]*)\.\w{8}(?=/|$)", r"\1", ended.changes[-1].split(" ", 2)[2])
    inside = Path(path).relative_to(output.resolve().parent).parts
    return inside[1] if len(inside) > 1 else "the output itself"


def _check_nothing_lost(outcome: Outcome, output: Path, before: int, ended: Ended) -> None:
    """Compare what is there after a kill with what was there: a checkpoint that was complete may not be gone."""
    if not (output / "checkpoints").is_dir():
        return
    found = last_step(output)
    logged = max((line["step"] for line in read_lines(output / "metrics.jsonl")), default=0)
    if found < before:
        outcome.fail("lost", f"checkpoint {before} was complete, the newest is now {found}: {ended.show()}")
    # Saving takes some steps; two checkpoints late is lost.
    if found and logged - found > 7:
        outcome.fail("lost", f"step {logged} was logged, the newest checkpoint is {found}: {ended.show()}")


def finish(
    outcome: Outcome,
    job: Job,
    workplace: Workplace,
    folder: Path,
    allowed: re.Pattern[str] = _ALLOWED,
    stopped: int | None = None,
) -> None:
    """Let the command finish, and compare its output with that of an undisturbed run.

    `stopped` is the step that a signal stopped: the evaluation and the sample that were due at it may be missing.
    """
    output, reference = folder / "output", workplace.reference(job.name)
    words, newest = job.again(workplace, output), last_step(output)
    ended = run_with(plain(folder, output), words)
    if ended.code != 0 and not _is_complete(job, ended):
        outcome.fail("lost", f"{' '.join(words)}: {ended.show()}")
        return
    if newest and newest < 12 and f"resuming after step {newest}" not in ended.stdout:
        outcome.fail("lost", f"checkpoint {newest} was complete and was not resumed from: {ended.show()}")
    found, expected = job.digest(output), reference.digest
    if stopped:
        found, expected = _without_due(found, stopped), _without_due(expected, stopped)
    differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if differing == [SAMPLE_ORDER]:
        outcome.fail("untidy", f"{job.name}: samples of steps {found[SAMPLE_ORDER]}: some twice")
    elif differing:
        outcome.fail("lost", f"{job.name}: differs from an undisturbed run in {', '.join(differing[:6])}")
    if left := {name for name in names_left(output) - reference.names if not allowed.match(name)}:
        outcome.fail("untidy", f"{job.name}: left behind {', '.join(sorted(left))}")


def _without_due(digest: dict[str, str], step: int) -> dict[str, str]:
    """Leave out what is due at a step besides training."""
    kept = {name: value for name, value in digest.items() if name not in (SAMPLE_ORDER, f"sample of step {step}")}
    if (line := kept.get(f"metrics of step {step}")) is not None:
        numbers = {name: value for name, value in json.loads(line).items() if not name.startswith("val/")}
        kept[f"metrics of step {step}"] = json.dumps(numbers, sort_keys=True)
    return kept


def _is_complete(job: Job, ended: Ended) -> bool:
    """Return True where a command that never overwrites refuses to: the output is there and will be compared."""
    return job in _NEVER_OVERWRITING and ended.code == 2 and "already exists" in ended.stderr


def refuse(job: Job, fault: str, workplace: Workplace, folder: Path, rng: np.random.Generator) -> Outcome:
    """Let the disk be full or read-only from a random moment on, or fail once; then let the command finish."""
    outcome, output, reference = Outcome(), folder / "output", workplace.reference(job.name)
    injection = Injection(
        root=str(output),
        log=str(folder / "changes.txt"),
        fault=fault,  # pyright: ignore[reportArgumentType]
        at=1 if fault == "read_only" and rng.integers(3) == 0 else choose_moment(rng, reference.changes),
        error=int(rng.choice(_REFUSALS)),
        refuse_new=bool(rng.integers(2)),
        outputs=(str(folder / "stdout"), str(folder / "stderr")),
    )
    with watched(outcome, job.name):
        words = job.again(workplace, output)
        ended = run_with(injection, words)
        outcome.tried += 1
        what = f"{job.name}, {fault} at change {injection.at}"
        if "Traceback" in ended.stderr or ended.code not in (0, 2):
            outcome.fail("crashed", f"{what}: {ended.show()}")
        elif ended.code == 2:
            lines = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
            if len(lines) != 1 or len(ended.stderr.splitlines()) != 1:
                outcome.fail("untidy", f"{what}: expected one line of error: {ended.show()}")
            elif str(folder) not in lines[0]:
                outcome.fail("untidy", f"{what}: names no file: {ended.show()}")
        if ended.code == 0 and job.settings == "" and not output.exists():
            outcome.fail("lost", f"{what}: status 0 without an output: {ended.show()}")
        finish(outcome, job, workplace, folder)
    return outcome


def exchange(workplace: Workplace, folder: Path, rng: np.random.Generator) -> Outcome:
    """Kill a training, then go on with other data and another tokenizer: refused, or a run of the other data alone."""
    outcome, output, job = Outcome(), folder / "output", JOBS["train-dense"]
    with watched(outcome, "exchange"):
        at = choose_moment(rng, workplace.reference(job.name).changes)
        injection = Injection(root=str(output), log=str(folder / "changes.txt"), fault="kill", at=at)
        if run_with(injection, job.words(workplace, output)).code != -signal.SIGKILL:
            return outcome
        outcome.tried += 1
        begun = (output / "config.yaml").is_file()
        words = [*OTHER_TRAINING.words(workplace, output), *(["--resume", "true"] if begun else [])]
        ended = run_with(plain(folder, output), words)
        other = workplace.reference(OTHER_TRAINING.name).digest
        if ended.code == 0 and digest_run(output) != other:
            outcome.fail("silent", f"killed before change {at}, other data were taken: {ended.show()}")
        if ended.code not in (0, 2) or "Traceback" in ended.stderr:
            outcome.fail("crashed", f"killed before change {at}, then other data: {ended.show()}")
        if ended.code == 2:
            finish(outcome, job, workplace, folder)
    return outcome


def two_at_once(job: Job, workplace: Workplace, folder: Path, rng: np.random.Generator) -> Outcome:
    """Start a command twice on one output, sometimes after a kill: one does the work, the other is refused or waits."""
    outcome, output, reference = Outcome(), folder / "output", workplace.reference(job.name)
    with watched(outcome, f"two at once: {job.name}"):
        if rng.integers(2):
            at = choose_moment(rng, reference.changes)
            log = str(folder / "changes.txt")
            run_with(Injection(root=str(output), log=log, fault="kill", at=at), job.words(workplace, output))
        words = job.again(workplace, output)
        with start(*words) as first:
            time.sleep(float(rng.choice([0, rng.uniform(0, 0.2), rng.uniform(0, reference.seconds)])))
            with start(*job.again(workplace, output)) as second:
                codes = [command.wait(LONGEST_S) for command in (first, second)]
                stderr = first.stderr + second.stderr
        outcome.tried += 1
        if not set(codes) <= {0, 2} or "Traceback" in stderr:
            outcome.fail("crashed", f"two at once: {job.name}: status {codes}: {' '.join(stderr.split())[-600:]}")
        if codes == [2, 2]:
            outcome.fail("lost", f"two at once: {job.name}: both were refused: {' '.join(stderr.split())[-600:]}")
        finish(outcome, job, workplace, folder)
    return outcome


def choose_job(jobs: Sequence[Job], workplace: Workplace, rng: np.random.Generator) -> Job:
    """Return one of the jobs that the workplace has a result of."""
    known = [job for job in jobs if workplace.has(job.name)]
    return known[int(rng.integers(len(known)))]


def _any_of(action, jobs: Sequence[Job], *more):
    """Return a trial that does something to one of several jobs."""

    def trial(workplace: Workplace, folder: Path, rng: np.random.Generator) -> Outcome:
        return action(choose_job(jobs, workplace, rng), *more, workplace, folder, rng)

    return trial


_GROUPS: tuple[tuple[str, Sequence[Job], float], ...] = (
    ("train", TRAININGS, 12),
    ("prepare", PREPARATIONS, 1.5),
    ("tokenizer", TOKENIZERS, 0.7),
    ("convert", (*CONVERSIONS, *MERGES), 4),
    ("finetune", FINETUNINGS, 2.5),
)
KINDS = [
    *(Kind(f"kill {name}", _any_of(kill, jobs), share) for name, jobs, share in _GROUPS),
    *(Kind(f"disk full {name}", _any_of(refuse, jobs, "full"), share / 8) for name, jobs, share in _GROUPS),
    *(Kind(f"read-only {name}", _any_of(refuse, jobs, "read_only"), share / 16) for name, jobs, share in _GROUPS),
    *(Kind(f"disk error {name}", _any_of(refuse, jobs, "one_error"), share / 12) for name, jobs, share in _GROUPS),
    *(Kind(f"two at once {name}", _any_of(two_at_once, jobs), share / 12) for name, jobs, share in _GROUPS),
    Kind("other data after a kill", exchange, 1.0),
]
