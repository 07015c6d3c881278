"""The verifier of functions: a program of the model runs with its unit tests in a child process with limits.

The limits keep a program from files, from other processes, and from more time and memory than it has. It shares a
process with its tests, so one that is made to cheat can; a language model that is trained on them may find that out.
"""

import os
import subprocess
import sys
from pathlib import Path

from jaxlm.common.rewards.task import Row, VerifierFault
from shared_tokenizer.sandbox.child_process import ChildError, ChildProcess

MEMORY_BYTES = 512 << 20
TIME_S = 2.0
# The child itself ends a program that is too slow; only a machine that is busy with other things makes it wait longer.
_WAIT_S = 4 * TIME_S
_LONGEST_REPLY = 1000


class UnitTests:
    """A verifier: the share of the row's "tests" that pass after prompt and answer have run as one program."""

    def __init__(self) -> None:
        self._child = ChildProcess(_start_process)

    def __call__(self, prompt: str, answer: str, row: Row) -> float:
        tests = list(row["tests"])
        try:
            reply = self._child.ask({"source": prompt + answer, "tests": tests}, _WAIT_S, _LONGEST_REPLY)
        except ChildError as error:
            raise VerifierFault("too_slow", str(error)) from error
        return reply["passed"] / len(tests)


def _start_process() -> "subprocess.Popen[bytes]":
    child = Path(__file__).with_name("unit_tests_child.py")
    root = str(Path(__file__).parents[3])
    code = f"import runpy, sys; sys.path.append({root!r}); runpy.run_path({str(child)!r}, run_name='__main__')"
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code, str(MEMORY_BYTES), str(TIME_S)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={name: os.environ[name] for name in ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH") if name in os.environ},
        start_new_session=True,  # an interrupt from the terminal is for this process
    )
