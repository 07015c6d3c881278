"""A child process that answers requests through its pipes, each within a time and a length.

A message is 4 bytes of length, big-endian, then JSON. The child sends one message when it is ready, then one for every
request.
"""

import contextlib
import json
import os
import select
import signal
import struct
import subprocess
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any

START_S = 30.0
_LONGEST_START = 1000


class ChildError(Exception):
    """A child process has not answered a request. It has been ended; the next request starts another."""


class TooSlowError(ChildError):
    """The answer did not come in time, or the child was ended by its own timer (SIGPROF)."""


class TooLongError(ChildError):
    """The answer is longer than allowed."""


class ChildProcess:
    """A process that is started when it is first asked, and ended with this one."""

    def __init__(self, start: Callable[[], "subprocess.Popen[bytes]"]):
        self._start = start
        self.process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def ask(self, request: Mapping[str, Any], seconds: float, longest: int) -> dict[str, Any]:
        """Return the answer to a request, which may take so many seconds and have `longest` bytes.

        Raises ChildError where there is none, and OSError where the process does not start.
        """
        content = json.dumps(request).encode()
        process = self._started()
        assert process.stdin is not None
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(struct.pack(">I", len(content)) + content)
                process.stdin.flush()
            return _receive(process, seconds, longest)
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """End the process, where there is one."""
        if self.process is not None and self._owner == os.getpid():
            self._finalizer()
        self.process = None

    def _started(self) -> "subprocess.Popen[bytes]":
        is_ours = self._owner == os.getpid()  # a fork has the child of the other process
        if self.process is None or not is_ours or self.process.poll() is not None:
            self.end()
            try:
                self.process = process = self._start()
                self._owner = os.getpid()
                self._finalizer = weakref.finalize(self, _end_process, process, self._owner)
                _receive(process, START_S, _LONGEST_START)
            except (OSError, ChildError) as error:
                self.end()
                raise OSError(f"the process to run it did not start: {error}") from error
        return self.process


def _end_process(process: "subprocess.Popen[bytes]", owner: int) -> None:
    if owner != os.getpid():
        return
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def _receive(process: "subprocess.Popen[bytes]", seconds: float, longest: int) -> dict[str, Any]:
    """Return an answer. Raises ChildError where it does not come in time, is too long, or the process ends."""
    assert process.stdout is not None
    deadline, content, length = time.monotonic() + seconds, b"", 4
    waiting = select.poll()  # unlike select, for any number of open files
    waiting.register(process.stdout, select.POLLIN)
    while len(content) < length:
        if not waiting.poll(1000 * max(0.0, deadline - time.monotonic())):
            raise TooSlowError(f"it ran for {seconds:g} s and had not ended")
        chunk = os.read(process.stdout.fileno(), 1 << 20)
        if not chunk:
            raise _ended(process)
        content += chunk
        if length == 4 and len(content) >= 4:
            length += struct.unpack(">I", content[:4])[0]
            if length > longest:
                raise TooLongError(f"it answers with more than {longest:,} bytes")
    return json.loads(content[4:])


def _ended(process: "subprocess.Popen[bytes]") -> ChildError:
    code = process.wait()
    if code == -signal.SIGPROF:
        return TooSlowError("it has used up its time")
    return ChildError(f"its process ended with {signal.Signals(-code).name if code < 0 else f'exit code {code}'}")
