"""A child process that can do no more than read requests and answer them, for what comes from elsewhere.

It can neither open a file nor start a process, nor use more memory and time than its limits (`child_loop`).
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared_tokenizer.sandbox.child_process import ChildError, ChildProcess, TooLongError, TooSlowError

_LIBRARY_PATHS = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")


@dataclass(frozen=True)
class Limits:
    """The limits of one request.

    seconds: of computing.
    wait_s: seconds to wait for it on a machine that is busy with other things.
    bytes_per_s: the pace at which a request is read; the time for that comes on top.
    memory_bytes: of the process; macOS has no such limit.
    """

    seconds: float
    wait_s: float
    bytes_per_s: float
    memory_bytes: int


@dataclass(frozen=True)
class Wording:
    """The words of errors: what is at fault, as "chat template", what was expected of it, and the way out."""

    subject: str
    expected: str
    way_out: str


class IsolatedChild(ChildProcess):
    """A process that runs a module of this project, which finds `packages` and the standard library alone."""

    def __init__(self, module: str, packages: Sequence[str], limits: Limits, wording: Wording):
        super().__init__(lambda: _start_process(module, packages, limits))
        self._limits, self._wording = limits, wording

    def ask_within_limits(self, request: Mapping[str, Any], longest: int, longest_output: int = 0) -> dict[str, Any]:
        """Return the answer to a request, of at most `longest` bytes.

        Raises ValueError where the child finds something wrong ("wrong" in its answer), exceeds a limit or ends.
        """
        words, limits = self._wording, self._limits
        seconds = limits.wait_s + 3 * len(json.dumps(request)) / limits.bytes_per_s
        try:
            reply = self.ask(request, seconds, longest)
        except TooSlowError as error:
            raise self._exceeded("time") from error
        except TooLongError as error:
            raise self._exceeded("output", longest) from error
        except ChildError as error:
            raise ValueError(f"{words.subject}: {error}, expected {words.expected}; {words.way_out}") from error
        except OSError as error:
            raise ValueError(f"{words.subject}: {error}") from error
        if "limit" in reply:
            self.end()
            raise self._exceeded(reply["limit"], longest_output)
        if "wrong" in reply:
            raise ValueError(f"{words.subject}: found {reply['wrong']}; {words.way_out}")
        return reply

    def _exceeded(self, limit: str, longest: int = 0) -> ValueError:
        found = {
            "time": f"it ran for {self._limits.seconds:g} s and had not ended",
            "memory": f"it needs more than {self._limits.memory_bytes >> 20} MB of memory",
            "output": f"it writes more than {longest:,} characters",
        }[limit]
        words = self._wording
        return ValueError(f"{words.subject}: {found}, expected {words.expected} within these limits; {words.way_out}")


def _start_process(module: str, packages: Sequence[str], limits: Limits) -> "subprocess.Popen[bytes]":
    """Start the child: an interpreter that finds the packages alone, which takes a tenth of a second."""
    specs = [importlib.util.find_spec(name) for name in packages]
    places = {str(Path(spec.origin).parent.parent) for spec in specs if spec is not None and spec.origin is not None}
    folders = [*sorted(places), str(Path(__file__).parents[2])]
    code = f"import runpy, sys; sys.path += {folders}; runpy.run_module({module!r}, run_name='__main__')"
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code]
        + [str(each) for each in (limits.memory_bytes, limits.seconds, limits.bytes_per_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={name: os.environ[name] for name in _LIBRARY_PATHS if name in os.environ},
        start_new_session=True,  # an interrupt from the terminal is for this process
    )
