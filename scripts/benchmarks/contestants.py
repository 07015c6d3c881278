"""Contestants of a benchmark, each in a process of its own: threads, caches and peak memory of one meet no other."""

import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

# Called in the contestant's process: builds what it needs and returns the function to be timed.
Setup = Callable[[], Callable[[], Any]]


@dataclass(frozen=True)
class Measured:
    """Of one contestant."""

    seconds: float
    """Median of its turns."""
    peak_bytes: int
    """Peak memory beyond what the process held before the setup, which imports libraries first."""


def measure(contestants: Mapping[str, Setup], turns: int, warm_up: int = 2) -> dict[str, Measured]:
    """Let contestants take turns, so that a drift of the machine meets all. Raises RuntimeError where one fails."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    processes = []
    try:
        for name, setup in contestants.items():
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(setup, theirs), daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            pipes[name] = ours
            _ask(name, ours)  # ready; one after another, so that no setup disturbs another's
        seconds: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(warm_up + turns):
            for name, pipe in pipes.items():
                pipe.send("run")
                seconds[name].append(_ask(name, pipe))
        found = {}
        for name, pipe in pipes.items():
            pipe.send("stop")
            found[name] = Measured(statistics.median(seconds[name][warm_up:]), int(_ask(name, pipe)))
        return found
    finally:
        for process in processes:
            process.terminate()


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
    pipe.send(_peak_bytes() - before)


def _peak_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
