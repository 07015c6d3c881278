"""Standard output and error of a run that must outlive them: a closed terminal or pipe turns them off.

What is printed afterwards goes to /dev/null, also from threads and from libraries that write to the descriptor.
"""

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, Self, TextIO

# Nobody reads the stream any more; of other errors (a full disk under `> log`) the same is true of this run.
_REASONS = {errno.EPIPE: "SIGPIPE", errno.EIO: "SIGHUP"}


class GuardedStream:
    """A text stream whose errors end its output, not the program. `on_dead` receives the name of the reason."""

    def __init__(self, stream: TextIO, on_dead: Callable[[str], None]):
        self._stream, self._on_dead = stream, on_dead

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._guarded():
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        with self._guarded():
            self._stream.writelines(lines)

    def flush(self) -> None:
        with self._guarded():
            self._stream.flush()

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except BlockingIOError:
            pass  # a slow reader loses a line
        except OSError as error:
            self._turn_off()
            self._on_dead(_REASONS.get(error.errno or 0, "SIGPIPE"))

    def _turn_off(self) -> None:
        with contextlib.suppress(OSError, ValueError, AttributeError):  # not every stream has a descriptor
            descriptor = self._stream.fileno()
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, descriptor)
            os.close(null)
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()  # what is still in its buffer


class OutputGuard:
    """A context in which standard output and error are guarded."""

    def __init__(self, on_dead: Callable[[str], None]):
        self._on_dead = on_dead
        self._before: tuple[Any, Any] = (None, None)
        self._guards: tuple[Any, Any] = (None, None)

    def __enter__(self) -> Self:
        self._before = sys.stdout, sys.stderr
        self._guards = tuple(  # pyright: ignore[reportAttributeAccessIssue]
            None if stream is None else GuardedStream(stream, self._on_dead) for stream in self._before
        )
        sys.stdout, sys.stderr = self._guards
        return self

    def __exit__(self, *_: object) -> None:
        for guard in self._guards:
            if guard is not None:
                guard.flush()
        if sys.stdout is self._guards[0]:
            sys.stdout = self._before[0]
        if sys.stderr is self._guards[1]:
            sys.stderr = self._before[1]
