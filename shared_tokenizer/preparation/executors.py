"""Run jobs in this process, in several local processes, or on a Ray cluster.

A job whose worker is killed is run again.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Literal, TypeVar

Executor = Literal["local", "ray"]
Job = TypeVar("Job")
Result = TypeVar("Result")
# A job that ends its worker this often is not tried again.
TRIES = 3


def run_jobs(
    function: Callable[[Job], Result], jobs: Sequence[Job], executor: Executor, num_workers: int
) -> Iterator[Result]:
    """Yield the result of each job, in order. Closing the iterator drops the jobs that have not begun.

    Raises the exception of a job, and ValueError where a job has ended its worker three times, or there is no Ray.
    """
    if executor == "ray":
        return _run_ray(function, jobs)
    if num_workers == 1 or len(jobs) == 1:
        return map(function, jobs)
    return _run_processes(function, jobs, num_workers)


def _run_processes(function: Callable[[Job], Result], jobs: Sequence[Job], num_workers: int) -> Iterator[Result]:
    done, tries = 0, 0
    context = multiprocessing.get_context("spawn")  # a fork would copy the threads of arrow and the tokenizer
    while done < len(jobs):
        try:
            with ProcessPoolExecutor(min(num_workers, len(jobs) - done), context, _start_worker) as pool:
                with _interrupts_blocked():
                    results = pool.map(function, jobs[done:])
                for result in results:
                    yield result
                    done, tries = done + 1, 0
        except BrokenProcessPool:
            tries += 1
            if tries == TRIES:
                raise ValueError(
                    f"worker: ended {TRIES} times at slice {done}, perhaps for lack of memory; "
                    "set a smaller num_workers"
                ) from None


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Delay Ctrl-C in this process, and block it for good in processes that start meanwhile.

    Those finish their jobs; this process answers the signal.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    """End this worker when its parent ends, even by a kill."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_ray(function: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[Result]:
    try:
        import ray
        from ray.exceptions import RayTaskError
    except ImportError as error:
        raise ValueError("executor: ray is not installed; pip install '.[cluster]'") from error
    try:
        ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True)
    except ConnectionError as error:
        raise ValueError("executor: found no running Ray cluster; start one with `ray start --head`") from error
    remote: Any = ray.remote(max_retries=TRIES)(function)
    pending = [remote.remote(job) for job in jobs]
    try:
        for reference in pending:
            try:
                yield ray.get(reference)
            except RayTaskError as error:
                raise error.cause from None
    finally:
        for reference in pending:
            ray.cancel(reference)
        ray.shutdown()
