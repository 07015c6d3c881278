"""A verifier of the user's own: a function of their file, called in a child process with a limit on time.

It may print, raise, hang or end its process: training goes on, and the answer gets no reward.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxlm.common.rewards.task import Row, VerifierFault
from shared_tokenizer.sandbox.child_process import ChildError, ChildProcess, TooSlowError

# To import the file, with all that it imports.
LOAD_S = 120.0
_LONGEST_REPLY = 1 << 16


class OwnVerifier:
    """A function (prompt, answer, row) -> reward of the user's own. Raises ValueError where it cannot be imported.

    `target` is `path/to/file.py:function`, or `module:function`; `seconds` are those of one call.
    """

    def __init__(self, target: str, seconds: float):
        place, _, name = target.rpartition(":")
        if not place or not name.isidentifier():
            raise ValueError(f"verifier: found {target!r}, expected path/to/file.py:function")
        if place.endswith(".py"):
            if not Path(place).is_file():
                raise ValueError(f"verifier: {place}: found no such file, expected one with a function {name}")
        elif not all(part.isidentifier() for part in place.split(".")):
            raise ValueError(f"verifier: found {target!r}, expected path/to/file.py:function")
        self._target, self._seconds = target, seconds
        self._child = ChildProcess(lambda: _start_process(place, name))
        self._loaded: subprocess.Popen[bytes] | None = None
        self._load()

    def __call__(self, prompt: str, answer: str, row: Row) -> Any:
        self._load()
        try:
            reply = self._child.ask(
                {"prompt": prompt, "answer": answer, "row": dict(row)}, self._seconds, _LONGEST_REPLY
            )
        except TooSlowError as error:
            raise VerifierFault("too_slow", f"{self._target} ran for {self._seconds:g} s and had not ended") from error
        except ChildError as error:
            raise VerifierFault("ended", f"{self._target}: {error}") from error
        if "raised" in reply:
            raise VerifierFault("raised", f"{self._target} raised {reply['raised']}")
        return reply.get("reward", reply.get("found"))

    def close(self) -> None:
        """End the child process."""
        self._child.end()

    def _load(self) -> None:
        """Let the child import the function, where it has not yet."""
        if self._loaded is not None and self._loaded is self._child.process and self._loaded.poll() is None:
            return
        try:
            reply = self._child.ask({"load": True}, LOAD_S, _LONGEST_REPLY)
        except (ChildError, OSError) as error:
            raise ValueError(f"verifier: {self._target} could not be imported: {error}") from error
        if "raised" in reply:
            self._child.end()
            raise ValueError(f"verifier: {self._target} could not be imported: {reply['raised']}")
        self._loaded = self._child.process


def _start_process(place: str, name: str) -> "subprocess.Popen[bytes]":
    child, root = Path(__file__).with_name("own_verifier_child.py"), str(Path(__file__).parents[3])
    # No file of the current folder stands in for one of the standard library while the child starts.
    code = f"import sys; sys.path[:1] = []; sys.path.append({root!r}); import runpy; "
    code += f"runpy.run_path({str(child)!r}, run_name='__main__')"
    environment: Mapping[str, str] = os.environ
    return subprocess.Popen(
        [sys.executable, "-c", code, place, name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**environment, "JAX_PLATFORMS": "cpu"},  # the device is the trainer's
        start_new_session=True,  # an interrupt from the terminal is for this process
    )
