"""A lock between processes: a file that one of them holds. A process that ends, or is killed, lets it go."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

# A command that only looks whether the lock is held, holds it for a moment itself.
_PATIENCE_SECONDS = 0.2


class LockedError(ValueError):
    """Another process holds the lock. The message is what it wrote into the file."""


@contextlib.contextmanager
def locked_file(path: Path) -> Iterator[TextIO]:
    """Yield the file of a lock, open for reading and writing, and hold the lock meanwhile.

    Raises LockedError where another process holds it, and FileNotFoundError where the folder is gone.
    """
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        with path.open("a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(0.02)
                    continue
                file.seek(0)
                raise LockedError(file.read().strip()) from None
            # Who held it before may have removed the file: then this lock would lock out nobody.
            if _is_at(path, file):
                yield file
                return


def _is_at(path: Path, file: TextIO) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
