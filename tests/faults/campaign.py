"""The campaign of faults: `python -m tests.faults.campaign --minutes 20`, or `make faults MINUTES=20`.

Two processes make trials of every kind until the time is over. Each trial draws all of its random choices from one
seed, which is printed with whatever went wrong. At the end stands a table, and the exit status is 1 if anything failed.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.faults.trial import Failure, Kind, Outcome

PROCESSES = 2
_MODULES = ("interrupted", "stopped", "flips", "mutated_files", "bombs", "server_attacks")
# Failures of a kind that are printed; all are counted.
_SHOWN = 5


@dataclass
class Row:
    """Trials of one kind and their outcomes."""

    trials: int = 0
    tried: int = 0
    failures: list[tuple[int, Failure]] = field(default_factory=list)
    """Each with the seed of its trial."""
    seconds: float = 0.0
    places: Counter[str] = field(default_factory=Counter)


def all_kinds() -> list[Kind]:
    """Return every kind of fault, in the order of the table."""
    return [kind for name in _MODULES for kind in importlib.import_module(f"tests.faults.{name}").KINDS]


def main() -> int:
    """Read the command line, run the campaign, print its table. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="tests.faults.campaign", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, help="of the whole campaign; by default chosen by chance and printed")
    parser.add_argument("--only", action="append", default=[], help="kinds whose name contains this; may be repeated")
    parser.add_argument("--trial", type=int, help="seed of one trial to repeat, of the one kind of --only")
    parser.add_argument("--processes", type=int, default=PROCESSES)
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--workplace", type=Path, help="folder for the inputs, to be used again; by default temporary")
    parser.add_argument("--list", action="store_true", help="list the kinds and exit")
    arguments = parser.parse_args()
    _import_settings()
    kinds = [kind for kind in all_kinds() if not arguments.only or any(part in kind.name for part in arguments.only)]
    if arguments.list:
        print("\n".join(kind.name for kind in kinds))
        return 0
    if not kinds:
        parser.error(f"--only: found no kind {' or '.join(arguments.only)}; see --list")
    with tempfile.TemporaryDirectory(prefix="faults-") as temporary:
        folder = arguments.workplace or Path(temporary)
        prepare_workplace(folder)
        if arguments.trial is not None:
            exact = [kind for kind in kinds if kind.name in arguments.only] or kinds
            return repeat(exact[0], folder, arguments.trial)
        seed = secrets.randbelow(2**31) if arguments.seed is None else arguments.seed
        print(f"seed {seed}, {arguments.minutes:g} minutes, {arguments.processes} processes", flush=True)
        rows = Campaign(kinds, folder, seed, arguments.processes).run(arguments.minutes * 60)
    show(rows)
    if arguments.json:
        write_json(arguments.json, rows, seed)
    return int(any(row.failures for row in rows.values()))


def prepare_workplace(folder: Path) -> None:
    """Write the inputs, unless a campaign before has done so. Works in a process of its own, which imports JAX."""
    if (folder / "complete").is_file():
        return
    maker = multiprocessing.get_context("spawn").Process(target=_make_workplace, args=(folder,))
    maker.start()
    maker.join()
    if maker.exitcode != 0:
        sys.exit(f"{folder}: the inputs could not be made; see above")
    (folder / "complete").touch()


def repeat(kind: Kind, folder: Path, seed: int) -> int:
    """Repeat one trial in this process. Returns the exit status."""
    outcome = run_trial(kind, folder, seed)
    print(f"{kind.name}, trial {seed}: {outcome.tried} tried")
    for failure in outcome.failures:
        print(f"{failure.what}: {failure.text}")
    return int(bool(outcome.failures))


def run_trial(kind: Kind, folder: Path, seed: int) -> Outcome:
    """Run one trial in a folder of its own; an error of the trial itself counts as a crash."""
    import numpy as np

    from tests.faults.workplace import Workplace

    own = folder / "trials" / f"{kind.name.replace(' ', '-').replace('/', '-')}-{seed}"
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir(parents=True)
    outcome = Outcome()
    try:
        outcome = kind.trial(Workplace(folder), own, np.random.default_rng(seed))
    except Exception:
        outcome.fail("crashed", f"{kind.name}: {' '.join(traceback.format_exc()[-700:].split())}")
    if not outcome.failures:
        shutil.rmtree(own, ignore_errors=True)
    return outcome


class Campaign:
    """Trials handed to processes, until the time is over."""

    def __init__(self, kinds: Sequence[Kind], folder: Path, seed: int, processes: int):
        self._kinds = {kind.name: kind for kind in kinds}
        self._folder, self._seed = folder, seed
        self.rows = {kind.name: Row() for kind in kinds}
        self._begun = Counter[str]()
        """Seconds that trials under way are expected to take, so that a kind is not started twice for its share."""
        self._workers = [_Worker(folder, folder / f"stderr-{number}.txt") for number in range(processes)]

    def run(self, seconds: float) -> dict[str, Row]:
        """Make trials for so long, and finish those that were begun."""
        deadline = time.monotonic() + seconds
        try:
            while True:
                for worker in self._workers:
                    if worker.is_free and time.monotonic() < deadline:
                        self._start_next(worker)
                busy = [worker for worker in self._workers if not worker.is_free]
                if not busy:
                    return self.rows
                wait([worker.connection for worker in busy], timeout=1)
                for worker in busy:
                    self._collect(worker)
        finally:
            for worker in self._workers:
                worker.end()

    def _start_next(self, worker: "_Worker") -> None:
        """Start a trial of the kind that has had the least of its share."""
        open_kinds = [kind for kind in self._kinds.values() if not (kind.once and self._begun[kind.name])]
        if not open_kinds:
            return
        kind = min(open_kinds, key=lambda kind: (self.rows[kind.name].seconds + self._begun[kind.name]) / kind.share)
        row = self.rows[kind.name]
        # As long as the trials before, or a second; so that two processes do not start the same kind.
        number = self._begun[kind.name]
        self._begun[kind.name] += 1
        digits = int.from_bytes(f"{self._seed} {kind.name} {number} {row.trials}".encode(), "big")
        worker.start(kind, digits % (2**31 - 1))

    def _collect(self, worker: "_Worker") -> None:
        found = worker.poll()
        if found is None:
            return
        kind, seed, outcome, seconds = found
        row = self.rows[kind.name]
        row.trials, row.tried, row.seconds = row.trials + 1, row.tried + outcome.tried, row.seconds + seconds
        row.places += outcome.places
        for failure in outcome.failures:
            row.failures.append((seed, failure))
            if len(row.failures) <= _SHOWN:
                print(f"{kind.name}: {failure.what}: {failure.text}\n    {repeat_command(kind, seed)}", flush=True)


def repeat_command(kind: Kind, seed: int) -> str:
    """Return the command that repeats a trial."""
    return f'make faults ONLY="{kind.name}" TRIAL={seed}'


class _Worker:
    """A process that makes one trial after the other."""

    def __init__(self, folder: Path, stderr: Path):
        self._folder, self._stderr = folder, stderr
        self._task: tuple[Kind, int, float] | None = None
        self._start_process()

    def _start_process(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, self._folder, self._stderr))
        self._process.start()
        theirs.close()

    @property
    def is_free(self) -> bool:
        """Return True where no trial is under way."""
        return self._task is None

    def start(self, kind: Kind, seed: int) -> None:
        """Start a trial."""
        self._task = (kind, seed, time.monotonic())
        self.connection.send((kind.name, seed))

    def poll(self) -> tuple[Kind, int, Outcome, float] | None:
        """Return the trial that has ended, with its outcome and its seconds; None while it runs."""
        assert self._task is not None
        kind, seed, begun = self._task
        seconds = time.monotonic() - begun
        try:
            outcome = self.connection.recv() if self.connection.poll() else None
        except EOFError:
            outcome = Outcome(1)
            self._process.join(10)
            end = " ".join(self._stderr.read_text("utf-8", "replace")[-300:].split())
            outcome.fail("crashed", f"the process of the trial died: status {self._process.exitcode}: {end}")
            self._restart()
        if outcome is None and seconds > kind.limit_s + 60:
            outcome = Outcome(1)
            outcome.fail("hung", f"no end after {seconds:.0f} s")
            self._restart()
        if outcome is None:
            return None
        self._task = None
        return kind, seed, outcome, seconds

    def _restart(self) -> None:
        self.end()
        self._start_process()

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
        self.connection.close()


def _import_settings() -> None:
    """Use the processor, and compile as the tests do: five times faster."""
    importlib.import_module("tests.conftest")


def _make_workplace(folder: Path) -> None:
    _import_settings()
    from tests.faults.workplace import make_workplace

    make_workplace(folder)


def _work(connection: Connection, folder: Path, stderr: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    _import_settings()
    kinds = {kind.name: kind for kind in all_kinds()}
    # What readers and libraries print on the way belongs to nobody, unless the process dies.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    while True:
        try:
            name, seed = connection.recv()
        except EOFError:
            return
        connection.send(run_trial(kinds[name], folder, seed))


def show(rows: dict[str, Row]) -> None:
    """Print the table: a row for every kind, and their sum."""
    table = Table(box=None, pad_edge=False)
    table.add_column("kind")
    for heading in ("tried", "lost", "silent", "crashed", "hung", "untidy", "seconds"):
        table.add_column(heading, justify="right")
    for name, row in rows.items():
        table.add_row(name, *_counts(row))
    whole = Row(
        tried=sum(row.tried for row in rows.values()),
        failures=[failure for row in rows.values() for failure in row.failures],
        seconds=sum(row.seconds for row in rows.values()),
    )
    table.add_row("all", *_counts(whole))
    Console(width=120, highlight=False).print(table)


def _counts(row: Row) -> list[str]:
    found = Counter(failure.what for _, failure in row.failures)
    counts = [found[what] for what in ("lost", "silent", "crashed", "hung", "untidy")]
    return [f"{row.tried:,}", *(f"{count:,}" if count else "-" for count in counts), f"{row.seconds:,.0f}"]


def write_json(path: Path, rows: dict[str, Row], seed: int) -> None:
    """Write the results, with every failure and the seed of its trial."""
    content: dict[str, Any] = {"seed": seed, "date": time.strftime("%Y-%m-%d"), "kinds": {}}
    for name, row in rows.items():
        failures = [{"trial": trial, "what": failure.what, "text": failure.text} for trial, failure in row.failures]
        content["kinds"][name] = {
            "trials": row.trials,
            "tried": row.tried,
            "seconds": round(row.seconds, 1),
            "places": dict(row.places.most_common()),
            "failures": failures,
        }
    path.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    sys.exit(main())
