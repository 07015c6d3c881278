"""Commands that are asked to stop, or whose terminal or pipe goes away: the last step that was logged is saved."""

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.commands import Command, start
from tests.faults.injected import Injection
from tests.faults.interrupted import LONGEST_S, choose_job, choose_moment, finish, watched
from tests.faults.trial import Kind, Outcome
from tests.faults.workplace import (
    CONVERSIONS,
    FINETUNINGS,
    PREPARATIONS,
    TOKENIZERS,
    TRAININGS,
    Job,
    Workplace,
    last_step,
    read_lines,
)

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ALLOWED = re.compile(r"/damaged")


@dataclass
class _Screen:
    """The reading end of a command's output: a file, a pipe that ends early, or a terminal."""

    outputs: tuple[str, str] | None = None
    terminal: str | None = None
    errors: int | None = None
    """Where the error stream can be read, if it is no file."""
    _ends: list[int] = field(default_factory=list)

    def close(self) -> None:
        """Go away, as `head`, `tee` or a terminal's window does."""
        while self._ends:
            os.close(self._ends.pop())

    def read(self, lines: int, command: Command) -> None:
        """Read so many lines, or until the command ends; wait until it has begun in any case."""
        found, begun = 0, False
        while (not begun or found < lines) and command.returncode is None:
            try:
                block = os.read(self._ends[0], 1 << 12)  # empty as long as nobody has opened the pipe
                found, begun = found + block.count(b"\n"), begun or bool(block)
            except BlockingIOError:
                begun = self.terminal is None  # a terminal says nothing of whether somebody has opened it
            except OSError:  # nobody has the terminal open yet
                pass
            time.sleep(0.002)

    def read_errors(self) -> str:
        """Return what was written to the error stream."""
        with contextlib.suppress(BlockingIOError):
            return "" if self.errors is None else os.read(self.errors, 1 << 20).decode("utf-8", "replace")
        return ""


@contextlib.contextmanager
def _pipe(folder: Path) -> Iterator[_Screen]:
    outputs = (str(folder / "stdout"), str(folder / "stderr"))
    for path in outputs:
        os.mkfifo(path)
    errors = os.open(outputs[1], os.O_RDWR | os.O_NONBLOCK)
    screen = _Screen(outputs, None, errors, [os.open(outputs[0], os.O_RDONLY | os.O_NONBLOCK)])
    try:
        yield screen
    finally:
        screen.close()
        os.close(errors)


@contextlib.contextmanager
def _terminal() -> Iterator[_Screen]:
    ours, theirs = os.openpty()
    screen = _Screen(None, os.ttyname(theirs), None, [ours])
    os.set_blocking(ours, False)
    try:
        yield screen
    finally:
        screen.close()
        os.close(theirs)


def stop(job: Job, workplace: Workplace, folder: Path, rng: np.random.Generator) -> Outcome:
    """Send a signal, or two, at a random moment."""
    outcome, output, reference = Outcome(), folder / "output", workplace.reference(job.name)
    number = signal.Signals(int(rng.choice(SIGNALS)))
    again_after = [None, None, 0.0, 0.05][int(rng.integers(4))]
    exact = bool(rng.integers(2))
    injection = Injection(
        root=str(output),
        log=str(folder / "changes.txt"),
        fault="signal" if exact else "none",
        at=choose_moment(rng, reference.changes) if exact else 0,
        signal_number=number,
    )
    what = f"{job.name}: {number.name} {'twice' if again_after is not None else 'once'}"
    with watched(outcome, what), start(*injection.words(*job.words(workplace, output))) as command:
        if exact:
            what += f" at change {injection.at}"
            _wait_for_change(command, Path(injection.log), injection.at)
        else:
            seconds = rng.uniform(0, reference.seconds)
            what += f" after {seconds:.2f} s"
            _wait(command, seconds)
            _send(command, number)
        if again_after is not None:
            _wait(command, again_after)
            _send(command, number)
        _check(outcome, job, what, output, command)
        finish(outcome, job, workplace, folder, _ALLOWED, stopped=last_step(output))
    return outcome


def leave(job: Job, workplace: Workplace, folder: Path, rng: np.random.Generator) -> Outcome:
    """Let `| head`, `| tee` under Ctrl-C, or a terminal's window go away after some lines of output."""
    outcome, output = Outcome(), folder / "output"
    how = ("head", "tee", "terminal")[int(rng.integers(3))]
    with contextlib.ExitStack() as stack:
        screen = stack.enter_context(_terminal() if how == "terminal" else _pipe(folder))
        injection = Injection(
            root=str(output), log=str(folder / "changes.txt"), outputs=screen.outputs, terminal=screen.terminal
        )
        stack.enter_context(watched(outcome, f"{job.name}: {how}"))
        command = stack.enter_context(start(*injection.words(*job.words(workplace, output))))
        lines = int(rng.integers(0, 32))
        screen.read(lines, command)
        screen.close()
        if how == "tee":
            _wait(command, float(rng.choice([0, 0.02])))
            _send(command, signal.SIGINT)
        if how == "terminal" and rng.integers(2):
            _send(command, signal.SIGHUP)  # of the shell, after that of the kernel
        _check(outcome, job, f"{job.name}: {how} left after {lines} lines", output, command, screen)
        finish(outcome, job, workplace, folder, _ALLOWED, stopped=last_step(output))
    return outcome


def _wait(command: Command, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and command.returncode is None:
        time.sleep(0.002)


def _wait_for_change(command: Command, log: Path, number: int) -> None:
    while command.returncode is None:
        if log.exists() and log.read_bytes().count(b"\n") >= number:
            return
        time.sleep(0.002)


def _send(command: Command, number: int) -> None:
    if command.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            command.send_signal(number)


def _check(
    outcome: Outcome, job: Job, what: str, output: Path, command: Command, screen: _Screen | None = None
) -> None:
    """Compare the newest checkpoint with the last line of the log, once the command has ended."""
    code = command.wait(LONGEST_S)
    outcome.tried += 1
    errors = command.stderr + (screen.read_errors() if screen is not None else "")
    end = " ".join((command.stdout[-200:] + " | " + errors[-600:]).split())
    if "Traceback" in errors:
        outcome.fail("crashed", f"{what}: status {code}: {end}")
    if job in (*TRAININGS, *FINETUNINGS):
        logged = max((line["step"] for line in read_lines(output / "metrics.jsonl")), default=0)
        if (found := last_step(output)) < logged:
            outcome.fail("lost", f"{what}: step {logged} was logged, {found} is saved: status {code}: {end}")


def _any_of(action, jobs: Sequence[Job]):
    """Return a trial that does something to one of several jobs."""
    return lambda workplace, folder, rng: action(choose_job(jobs, workplace, rng), workplace, folder, rng)


KINDS = [
    Kind("signal train", _any_of(stop, TRAININGS), 2.5),
    Kind("signal finetune", _any_of(stop, FINETUNINGS), 0.8),
    Kind("signal prepare, tokenizer, convert", _any_of(stop, (*PREPARATIONS, *TOKENIZERS, *CONVERSIONS)), 0.8),
    Kind("output ends train", _any_of(leave, TRAININGS), 1.5),
    Kind("output ends finetune", _any_of(leave, FINETUNINGS), 0.6),
]
