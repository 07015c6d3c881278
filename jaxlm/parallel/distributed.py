"""Several processes that train one model: they find each other, agree, and end when one of them is lost."""

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxlm.common.run.stop_request import StopRequest, StopRequested
from jaxlm.parallel.distributed_config import DistributedConfig

Result = TypeVar("Result")
MESSAGE_BYTES = 2000
RUNTIME_ERRORS = ("ABORTED: ", "DEADLINE_EXCEEDED: ", "INTERNAL: ", "UNAVAILABLE: ", "UNKNOWN: ")


@contextlib.contextmanager
def joined(config: DistributedConfig) -> Iterator[None]:
    """Join the processes of a run. Enter it before anything else asks jax for a device.

    Raises ValueError where the cluster gives no addresses and OSError where a device or another process fails.
    Where the others are not there in time the process ends with one line and exit code 2.
    """
    if config.alone:
        yield
        return
    _connect(config)
    try:
        yield
    except BaseException as error:
        # jax waits at exit for processes that in turn wait for this one.
        atexit.register(_leave_at_once)
        # jax hands on some of its runtime's errors as ValueError.
        if isinstance(error, jax.errors.JaxRuntimeError | TimeoutError) or str(error).startswith(RUNTIME_ERRORS):
            raise OSError(
                f"process {jax.process_index()}: a device or another process failed: {str(error).splitlines()[0]}; "
                "resume from the last checkpoint with --resume"
            ) from error
        raise
    jax.distributed.shutdown()


def _connect(config: DistributedConfig) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    where = config.coordinator_address or "of this cluster"
    # jax itself would abort the process here, with a stack trace.
    watch = threading.Timer(config.timeout_s, _give_up, [where, config])
    watch.daemon = True
    watch.start()
    try:
        jax.distributed.initialize(
            config.coordinator_address,
            config.num_processes,
            config.process_id,
            cluster_detection_method=None if config.auto else "deactivate",
            initialization_timeout=config.timeout_s + 60,
            heartbeat_timeout_seconds=config.timeout_s,
        )
    except ValueError as error:
        raise ValueError(
            f"distributed.auto: found no cluster that says its addresses ({error}); give "
            "distributed.coordinator_address, num_processes and process_id"
        ) from error
    finally:
        watch.cancel()


def _give_up(where: str, config: DistributedConfig) -> None:
    number = "" if config.process_id is None else f" as process {config.process_id} of {config.num_processes}"
    sys.stderr.write(
        f"error: distributed: coordinator {where}: not all processes met{number} within {config.timeout_s} s; start "
        "them all with the same address, or raise distributed.timeout_s\n"
    )
    _leave_at_once()


def _leave_at_once() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(2)


def is_first() -> bool:
    """Return True if this process writes the files of the run."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Wait until every process has called this."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def least_of_all(number: int) -> int:
    """Return the smallest of the processes' numbers, each below 2^31. All processes have to call this together."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.int32(number)).min())


def all_or_none(work: Callable[[], Result]) -> Result:
    """Run `work` on every process; a ValueError or OSError on one of them is raised on all."""
    if jax.process_count() == 1:
        return work()
    error: Exception | None = None
    result: Result | None = None
    try:
        result = work()
    except (ValueError, OSError) as found:
        error = found
    messages = [bytes(row).rstrip(b"\0") for row in multihost_utils.process_allgather(_message(error))]
    if any(messages):
        # Together, as long as all are here.
        jax.distributed.shutdown()
        number = next(number for number, message in enumerate(messages) if message)
        raise error or ValueError(f"process {number} failed: {messages[number].decode('utf-8', 'replace')}")
    return result  # pyright: ignore[reportReturnType]


def _message(error: Exception | None) -> np.ndarray:
    text = b"" if error is None else (str(error) or type(error).__name__).encode()[:MESSAGE_BYTES]
    return np.frombuffer(text.ljust(MESSAGE_BYTES, b"\0"), np.uint8)


def to_host(array: jax.Array | np.ndarray) -> np.ndarray:
    """Return all of an array on every process. All processes have to call this together."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


class SharedStop:
    """A stop request that all processes obey at the same step, whichever of them received the signal."""

    def __init__(self, stop: StopRequest):
        self._stop = stop
        self._several = jax.process_count() > 1
        self._pending: jax.Array | None = None
        mesh = Mesh(np.asarray(jax.devices()), ("all",))
        self._by_device = NamedSharding(mesh, PartitionSpec("all"))
        self._count = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def check(self) -> None:
        """Raise StopRequested if a stop was asked of any process; waits for all of them."""
        self._raise(self._vote() if self._several else None)

    def check_step(self) -> None:
        """Do the same without waiting: with several processes it acts on the votes of the step before."""
        before, self._pending = self._pending, self._vote() if self._several else None
        self._raise(before)

    def watch(self, work: Callable[[], Result]) -> Result:
        """Run `work`, and raise StopRequested as soon as a stop is asked for; among several processes only after it."""
        if not self._several:
            return self._stop.watch(work)
        result = work()
        self.check()
        return result

    def _vote(self) -> jax.Array:
        number = signal.Signals[self._stop.requested].value if self._stop.requested else 0
        votes = np.full(jax.local_device_count(), number, np.int32)
        return self._count(jax.make_array_from_process_local_data(self._by_device, votes))

    def _raise(self, votes: jax.Array | None) -> None:
        if not self._several:
            self._stop.check()
        elif votes is not None and (number := int(votes)):
            raise StopRequested(signal.Signals(number).name)
