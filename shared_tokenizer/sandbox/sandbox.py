"""Chat templates run in a child process with limits on time, memory and output (`child`).

One child serves all templates of a process, so 100,000 conversations start one. A child that a template has spoilt is
ended, and the next request starts another.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Of computing for one request, and of waiting for it on a machine that is busy with other things.
TIME_S = 0.5
WAIT_S = 1.5
# A request may also take the time to read it, at this pace.
BYTES_PER_S = 10_000_000
MEMORY_BYTES = 512 << 20
# Characters of one rendering, beside twice those of what it is given.
LONGEST_OUTPUT = 1 << 20
START_S = 30.0
_LIBRARY_PATHS = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
WAY_OUT = "name the format that the model was trained on with --chat_format"


@dataclass(frozen=True)
class Refusal:
    """The message of a template about a conversation that it does not render."""

    reason: str


class Sandbox:
    """A child process that renders templates, started when it is needed and ended with this one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def render(self, template: str, conversations: Sequence[Mapping[str, Any]]) -> list[str | Refusal]:
        """Return the text of each conversation, or why the template refuses it.

        A conversation is what the template may use by its name: messages, add_generation_prompt, bos_token, eos_token.
        Raises ValueError where the template is none, or exceeds a limit.
        """
        request = {
            "key": hashlib.sha256(template.encode("utf-8", "surrogatepass")).hexdigest(),
            "chats": [{"tools": None, "documents": None, **conversation} for conversation in conversations],
        }
        request["longest"] = LONGEST_OUTPUT + 2 * len(json.dumps(request["chats"]))
        with self._lock:
            reply = self._ask(request)
            if "unknown" in reply:
                reply = self._ask(request | {"template": template})
        return [result["text"] if "text" in result else Refusal(result["error"]) for result in reply["results"]]

    def close(self) -> None:
        """End the child process, where there is one."""
        with self._lock:
            self._end()

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        content = json.dumps(request).encode()
        process = self._started()
        assert process.stdin is not None
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(struct.pack(">I", len(content)) + content)
                process.stdin.flush()
            reply = _receive(
                process,
                WAIT_S + 3 * len(content) / BYTES_PER_S,
                12 * (request["longest"] + 1000) * len(request["chats"]),
            )
        except BaseException:
            self._end()
            raise
        if "limit" in reply:
            self._end()
            raise _exceeded(reply["limit"], request["longest"])
        if "wrong" in reply:
            raise ValueError(f"chat template: found {reply['wrong']}; {WAY_OUT}")
        return reply

    def _started(self) -> "subprocess.Popen[bytes]":
        is_ours = self._owner == os.getpid()  # a fork has the child of the other process
        if self._process is None or not is_ours or self._process.poll() is not None:
            self._end()
            try:
                self._process = process = _start_process()
                self._owner = os.getpid()
                self._finalizer = weakref.finalize(self, _end_process, process, self._owner)
                _receive(process, START_S, 1000)
            except (OSError, ValueError) as error:
                self._end()
                raise ValueError(f"chat template: the process to run it did not start: {error}") from error
        return self._process

    def _end(self) -> None:
        if self._process is not None and self._owner == os.getpid():
            self._finalizer()
        self._process = None


def _start_process() -> "subprocess.Popen[bytes]":
    """Start the child: an interpreter with the standard library and jinja2 alone, which takes a tenth of a second."""
    specs = [importlib.util.find_spec(name) for name in ("jinja2", "markupsafe")]
    folders = {str(Path(spec.origin).parent.parent) for spec in specs if spec is not None and spec.origin is not None}
    child = Path(__file__).with_name("child.py")
    code = f"import runpy, sys; sys.path += {sorted(folders)}; runpy.run_path({str(child)!r}, run_name='__main__')"
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code, *map(str, (MEMORY_BYTES, TIME_S, BYTES_PER_S))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={name: os.environ[name] for name in _LIBRARY_PATHS if name in os.environ},
        start_new_session=True,  # an interrupt from the terminal is for this process
    )


def _end_process(process: "subprocess.Popen[bytes]", owner: int) -> None:
    if owner != os.getpid():
        return
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def _receive(process: "subprocess.Popen[bytes]", seconds: float, most: int) -> dict[str, Any]:
    """Return a reply. Raises ValueError where it does not come in time, is too long, or the process ends."""
    assert process.stdout is not None
    deadline, content, length = time.monotonic() + seconds, b"", 4
    waiting = select.poll()  # unlike select, for any number of open files
    waiting.register(process.stdout, select.POLLIN)
    while len(content) < length:
        if not waiting.poll(1000 * max(0.0, deadline - time.monotonic())):
            raise _exceeded("time")
        chunk = os.read(process.stdout.fileno(), 1 << 20)
        if not chunk:
            raise _ended(process)
        content += chunk
        if length == 4 and len(content) >= 4:
            length += struct.unpack(">I", content[:4])[0]
            if length > most:
                raise _exceeded("output", most)
    return json.loads(content[4:])


def _ended(process: "subprocess.Popen[bytes]") -> ValueError:
    code = process.wait()
    if code == -signal.SIGPROF:
        return _exceeded("time")
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return ValueError(f"chat template: its process ended with {how}, expected a text; {WAY_OUT}")


def _exceeded(limit: str, longest: int = LONGEST_OUTPUT) -> ValueError:
    found = {
        "time": f"it ran for {TIME_S:g} s and had not ended",
        "memory": f"it needs more than {MEMORY_BYTES >> 20} MB of memory",
        "output": f"it writes more than {longest:,} characters",
    }[limit]
    return ValueError(f"chat template: {found}, expected a text within these limits; {WAY_OUT}")


SANDBOX = Sandbox()
