"""Chat templates run in a child process with limits on time, memory and output (`child`).

One child serves all templates of a process, so 100,000 conversations start one. A child that a template has spoilt is
ended, and the next request starts another.
"""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared_tokenizer.sandbox.child_process import ChildError, ChildProcess, TooLongError, TooSlowError

# Of computing for one request, and of waiting for it on a machine that is busy with other things.
TIME_S = 0.5
WAIT_S = 1.5
# A request may also take the time to read it, at this pace.
BYTES_PER_S = 10_000_000
MEMORY_BYTES = 512 << 20
# Characters of one rendering, beside twice those of what it is given.
LONGEST_OUTPUT = 1 << 20
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
        self._child = ChildProcess(_start_process)

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
            self._child.end()

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        length = len(json.dumps(request).encode())
        longest = 12 * (request["longest"] + 1000) * len(request["chats"])
        try:
            reply = self._child.ask(request, WAIT_S + 3 * length / BYTES_PER_S, longest)
        except TooSlowError as error:
            raise _exceeded("time") from error
        except TooLongError as error:
            raise _exceeded("output", longest) from error
        except ChildError as error:
            raise ValueError(f"chat template: {error}, expected a text; {WAY_OUT}") from error
        except OSError as error:
            raise ValueError(f"chat template: {error}") from error
        if "limit" in reply:
            self._child.end()
            raise _exceeded(reply["limit"], request["longest"])
        if "wrong" in reply:
            raise ValueError(f"chat template: found {reply['wrong']}; {WAY_OUT}")
        return reply


def _start_process() -> "subprocess.Popen[bytes]":
    """Start the child: an interpreter with the standard library and jinja2 alone, which takes a tenth of a second."""
    specs = [importlib.util.find_spec(name) for name in ("jinja2", "markupsafe")]
    folders = {str(Path(spec.origin).parent.parent) for spec in specs if spec is not None and spec.origin is not None}
    folders.add(str(Path(__file__).parents[2]))  # for the limits
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


def _exceeded(limit: str, longest: int = LONGEST_OUTPUT) -> ValueError:
    found = {
        "time": f"it ran for {TIME_S:g} s and had not ended",
        "memory": f"it needs more than {MEMORY_BYTES >> 20} MB of memory",
        "output": f"it writes more than {longest:,} characters",
    }[limit]
    return ValueError(f"chat template: {found}, expected a text within these limits; {WAY_OUT}")


SANDBOX = Sandbox()
