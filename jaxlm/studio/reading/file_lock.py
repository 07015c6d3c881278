"""Locks of other processes, looked at without taking them."""

import fcntl
from pathlib import Path


def is_locked(path: Path) -> bool:
    """Return True if a process holds the lock of a file."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
