"""Routes of an operation on this machine, of which the faster one is found by a measurement."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

_TURNS = 7


@dataclass(frozen=True)
class Route:
    """A route that may be used in place of XLA's own."""

    is_used: bool
    reason: str
    """Why, for people."""


def faster(seconds: Mapping[str, float], name: str, other: str, detail: str = "", allowed: float = 1.0) -> Route:
    """Return the route `name`, used if it took less than `allowed` times as long as the `other`."""
    is_used = seconds[name] < allowed * seconds[other]
    times = f"{1000 * seconds[name]:.2f} ms, {other} {1000 * seconds[other]:.2f} ms"
    return Route(is_used, f"{'on' if is_used else 'off'}: {name} {times}{detail}")


@contextlib.contextmanager
def now_on_this_cpu() -> Iterator[None]:
    """Compute at once, also while a program is traced, and on this process's CPU."""
    with jax.ensure_compile_time_eval(), jax.default_device(jax.local_devices(backend="cpu")[0]):
        yield


def record_of(path: Path) -> Path:
    """Return the file of the measured times of what a path names, for the XLA_FLAGS of this process."""
    flags = hashlib.sha256(os.environ.get("XLA_FLAGS", "").encode()).hexdigest()[:8]
    return path.with_name(f"{path.stem}-{flags}.json")


def measured_once(path: Path, forms: Callable[[], Mapping[str, Callable[[], Any]]]) -> dict[str, float]:
    """Return the seconds of the fastest call of each form on the CPU, measured once and kept in the path's record.

    `forms` makes the calls, each of which returns arrays to wait for.
    """
    record = record_of(path)
    # Not measured yet, or the file is damaged.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return {form: float(seconds) for form, seconds in json.loads(record.read_text()).items()}
    with now_on_this_cpu():
        found = _fastest(forms())
    with contextlib.suppress(OSError):  # measured anew at the next start
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(found))
    return found


def _fastest(calls: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """Return the seconds of the fastest of some calls of each, in turns, after one that compiles."""
    for call in calls.values():
        jax.block_until_ready(call())
    seconds = dict.fromkeys(calls, float("inf"))
    for _ in range(_TURNS):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds
