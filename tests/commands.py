"""Commands as users start them, each in a process of its own, without the seconds of CPU that its imports take.

The processes are forked from a server that has imported what the commands import and has done nothing else.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from jaxlm.common.command_line import quiet_libraries

ROOT = Path(__file__).parent.parent
quiet_libraries()  # before the server starts
_FORKS = multiprocessing.get_context("forkserver")
_PRELOADED = [
    "jsonargparse",
    "jaxlm.training.trainer",
    "jaxlm.conversion.convert",
    "shared_tokenizer.preparation.prepare",
]
_FORKS.set_forkserver_preload(_PRELOADED)


def preload(*modules: str) -> None:
    """Let the server import more; without effect once it runs."""
    _PRELOADED.extend(module for module in modules if module not in _PRELOADED)
    _FORKS.set_forkserver_preload(_PRELOADED)


class Command:
    """A started command and its output, which goes into two files; killed at the end of a `with` block."""

    def __init__(self, arguments: Sequence[str]):
        self.arguments = list(arguments)
        self._folder = tempfile.TemporaryDirectory()
        self._outputs = [Path(self._folder.name) / name for name in ("stdout", "stderr")]
        for output in self._outputs:
            output.touch()
        self._process = _FORKS.Process(target=_become, args=(self.arguments, self._outputs, dict(os.environ)))
        self._process.start()

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()
        self._folder.cleanup()

    @property
    def pid(self) -> int:
        """The id of the process."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, or minus the number of the signal that ended the process; None while it runs."""
        return self._process.exitcode

    @property
    def stdout(self) -> str:
        """All that was printed so far."""
        return self._outputs[0].read_text("utf-8", "replace")

    @property
    def stderr(self) -> str:
        """All that was printed on the error stream so far."""
        return self._outputs[1].read_text("utf-8", "replace")

    def send_signal(self, number: int) -> None:
        """Send a signal to the process."""
        os.kill(self.pid, number)

    def wait(self, timeout_s: float = 300) -> int:
        """Return the exit code; raise TimeoutExpired, and kill the process, if it does not end in time."""
        self._process.join(timeout_s)
        if self._process.exitcode is None:
            self._process.kill()
            raise subprocess.TimeoutExpired(self.arguments, timeout_s)
        return self._process.exitcode

    def wait_for(self, words: str, timeout_s: float = 300) -> None:
        """Wait until some words were printed; fail if the command ends before."""
        deadline = time.monotonic() + timeout_s
        while words not in self.stdout:
            assert self.returncode is None and time.monotonic() < deadline, self.stdout + self.stderr
            time.sleep(0.01)


def start(*words: object) -> Command:
    """Start `python WORDS`: the first is the path of a script, or -m and the second a module's name."""
    return Command([str(word) for word in words])


def run(*words: object, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    """Return the exit code and output of `python WORDS`, as `start` takes them."""
    with start(*words) as command:
        code = command.wait(timeout_s)
        return subprocess.CompletedProcess(command.arguments, code, command.stdout, command.stderr)


def _become(arguments: list[str], outputs: list[Path], environment: dict[str, str]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell runs in the background ignores it
    for descriptor, output in enumerate(outputs, 1):
        os.dup2(os.open(output, os.O_WRONLY), descriptor)
    sys.stdout.reconfigure(line_buffering=True)  # pyright: ignore[reportAttributeAccessIssue]
    os.environ.update(environment)
    os.chdir(ROOT)
    try:
        execute(arguments)
    finally:
        atexit._run_exitfuncs()  # as at the end of every Python, but not of a fork


def execute(arguments: list[str]) -> None:
    """Run `python WORDS` in this process, as `start` takes them."""
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        return
    sys.argv = arguments
    script = ROOT / arguments[0]
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")
