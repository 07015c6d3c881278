"""Candidates of a benchmark, each in a process of its own: threads, caches and peak memory of one meet no other."""

import multiprocessing
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

# Called in the candidate's process: builds what it needs and returns the function to be timed.
Setup = Callable[[], Callable[[], Any]]


@dataclass(frozen=True)
class OnDevice:
    """A function to be timed, where the memory that counts is not the process's."""

    run: Callable[[], Any]
    peak_bytes: Callable[[], int]

    def __call__(self) -> None:
        self.run()


@dataclass(frozen=True)
class Measured:
    """Of one candidate."""

    seconds: float
    """Median of its turns."""
    peak_bytes: int
    """Peak memory beyond what the process held before the setup, which imports libraries first; or the device's."""


def measure_apart(candidates: Mapping[str, Setup], turns: int, warm_up: int = 2) -> dict[str, Measured]:
    """Run the candidates one after another, on a device that does not drift or whose memory one may need alone."""
    found = {}
    for name, setup in candidates.items():
        found |= measure({name: setup}, turns, warm_up)
        print(f"{name}: {1000 * found[name].seconds:.1f} ms, {found[name].peak_bytes / 1e6:,.0f} MB", flush=True)
    return found


def measure(candidates: Mapping[str, Setup], turns: int, warm_up: int = 2) -> dict[str, Measured]:
    """Let candidates take turns, so that a drift of the machine meets all. Raises RuntimeError where one fails."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    processes = []
    try:
        for name, setup in candidates.items():
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(setup, theirs), daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            pipes[name] = ours
            _ask(name, ours)  # ready; one after another, so that no setup disturbs another's
        seconds: dict[str, list[float]] = {name: [] for name in candidates}
        order, rng = list(candidates), random.Random(0)
        for _ in range(warm_up + turns):
            rng.shuffle(order)  # a step is up to 7 % slower after some candidates than after others
            for name in order:
                pipes[name].send("run")
                seconds[name].append(_ask(name, pipes[name]))
        found = {}
        for name, pipe in pipes.items():
            pipe.send("stop")
            found[name] = Measured(statistics.median(seconds[name][warm_up:]), int(_ask(name, pipe)))
        return found
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _ask(name: str, pipe: Connection) -> float:
    try:
        return pipe.recv()
    except EOFError as error:
        raise RuntimeError(f"{name}: its process ended; the reason is above") from error


def _serve(setup: Setup, pipe: Connection) -> None:
    before = _peak_bytes()
    run = setup()
    pipe.send(0.0)
    while pipe.recv() == "run":
        start = time.perf_counter()
        run()
        pipe.send(time.perf_counter() - start)
    pipe.send(run.peak_bytes() if isinstance(run, OnDevice) else _peak_bytes() - before)


def _peak_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
