"""Run a command and make a fault at a chosen moment of it: `injected.py SPEC COMMAND...`.

The moment is counted in changes of files below one folder: files opened for writing, renamed, removed, directories made
or removed. Python reports each of them to an audit hook before it is made, so that no code has to be replaced.
"""

import errno
import fcntl
import json
import os
import resource
import signal
import sys
import termios
import threading
from dataclasses import asdict, dataclass
from typing import Any, Literal

Fault = Literal["none", "kill", "signal", "full", "read_only", "one_error"]
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
_MAKING = {"open", "os.rename", "os.mkdir", "os.link", "os.symlink"}


@dataclass(frozen=True, kw_only=True)
class Injection:
    """A fault to make before change number `at` (from 1) of a file below `root`; 0 makes none."""

    root: str
    log: str
    """File that receives one line per change."""
    fault: Fault = "none"
    at: int = 0
    signal_number: int = signal.SIGTERM
    error: int = errno.EIO
    refuse_new: bool = False
    """full: creating a file fails too, not only writing."""
    outputs: tuple[str, str] | None = None
    """FIFOs for stdout and stderr: a full disk must not keep us from reading the message."""
    terminal: str | None = None
    """A terminal to be started in."""

    def words(self, *command: object) -> list[str]:
        """Return the arguments of tests.commands.start for a command with this fault."""
        return ["tests/faults/injected.py", json.dumps(asdict(self)), *map(str, command)]


class _Hook:
    """Counts the changes and makes the fault."""

    def __init__(self, injection: Injection):
        self._injection = injection
        self._root = os.path.realpath(injection.root)
        self._log = os.open(injection.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._count = 0
        self._process = os.getpid()
        self._inside = threading.local()

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" and event not in _CHANGES:
            return
        if getattr(self._inside, "busy", False) or os.getpid() != self._process:
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & _WRITING):
            return
        path = self._path(arguments)
        if path is None:
            return
        self._inside.busy = True
        try:
            self._change(event, path)
        finally:
            self._inside.busy = False

    def _path(self, arguments: tuple[Any, ...]) -> str | None:
        """Return the path that is changed, None where it lies elsewhere."""
        path = arguments[0]
        if isinstance(path, int):
            return None
        path = os.fsdecode(path)
        if not os.path.isabs(path):
            # Below an open directory, as shutil.rmtree removes them; or below the working directory.
            has_directory = isinstance(arguments[-1], int) and arguments[-1] >= 0 and len(arguments) > 1
            folder = os.readlink(f"/proc/self/fd/{arguments[-1]}") if has_directory and _is_open(arguments[-1]) else "."
            path = os.path.join(folder, path)
        path = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        return (
            path
            if path == self._root or path.startswith(f"{self._root}{os.sep}") or _beside(path, self._root)
            else None
        )

    def _change(self, event: str, path: str) -> None:
        injection = self._injection
        self._count += 1
        if injection.fault not in ("full", "none") or self._count <= injection.at or injection.at == 0:
            os.write(self._log, f"{self._count} {event} {path}\n".encode())
        if injection.at == 0 or self._count < injection.at:
            return
        first = self._count == injection.at
        if injection.fault == "kill" and first:
            os.kill(os.getpid(), signal.SIGKILL)
        if injection.fault == "signal" and first:
            os.kill(os.getpid(), injection.signal_number)
        if injection.fault == "one_error" and first:
            raise OSError(injection.error, os.strerror(injection.error), path)
        if injection.fault == "read_only":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        if injection.fault == "full":
            if first:
                # Every later write of a file fails, in libraries too.
                os.write(self._log, f"{self._count} {event} {path}\n".encode())
                resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            if injection.refuse_new and event in _MAKING:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def _is_open(descriptor: int) -> bool:
    return os.path.exists(f"/proc/self/fd/{descriptor}")


def _beside(path: str, root: str) -> bool:
    """Return True for the temporary files next to an output: `.NAME.*` and `NAME.partial`."""
    folder, name = os.path.split(root)
    return path.startswith((f"{folder}{os.sep}.{name}", f"{folder}{os.sep}{name}."))


def _redirect(injection: Injection) -> None:
    if injection.outputs is not None:
        for descriptor, output in enumerate(injection.outputs, 1):
            os.dup2(os.open(output, os.O_WRONLY), descriptor)
    if injection.terminal is not None:
        os.setsid()
        terminal = os.open(injection.terminal, os.O_RDWR)
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
        for descriptor in (0, 1):
            os.dup2(terminal, descriptor)


def main() -> None:
    """Make the fault of the first argument in the command that follows."""
    from tests.commands import execute

    spec = json.loads(sys.argv[1])
    spec["outputs"] = spec["outputs"] and tuple(spec["outputs"])
    injection = Injection(**spec)
    _redirect(injection)
    sys.addaudithook(_Hook(injection))
    execute(sys.argv[2:])


if __name__ == "__main__":
    main()
