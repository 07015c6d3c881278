"""Chat templates run in a child process with limits on time, memory and output (`child`).

One child serves all templates of a process, so 100,000 conversations start one. A child that a template has spoilt is
ended, and the next request starts another.
"""

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared_tokenizer.sandbox.isolated import IsolatedChild, Limits, Wording

TIME_S = 0.5
LIMITS = Limits(seconds=TIME_S, wait_s=1.5, bytes_per_s=10_000_000, memory_bytes=512 << 20)
# Characters of one rendering, beside twice those of what it is given.
LONGEST_OUTPUT = 1 << 20
WAY_OUT = "name the format that the model was trained on with --chat_format"


@dataclass(frozen=True)
class Refusal:
    """The message of a template about a conversation that it does not render."""

    reason: str


class Sandbox:
    """A child process that renders templates, started when it is needed and ended with this one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        wording = Wording("chat template", "a text", WAY_OUT)
        self._child = IsolatedChild("shared_tokenizer.sandbox.child", ("jinja2", "markupsafe"), LIMITS, wording)

    def render(self, template: str, conversations: Sequence[Mapping[str, Any]]) -> list[str | Refusal]:
        """Return the text of each conversation, or why the template refuses it.

        A conversation is what the template may use by its name: messages, add_generation_prompt, bos_token, eos_token.
        Raises ValueError where the template is none, or exceeds a limit.
        """
        request = {
            "key": hashlib.sha256(template.encode("utf-8", "surrogatepass")).hexdigest(),
            "chats": [{"tools": None, "documents": None, **conversation} for conversation in conversations],
        }
        longest = request["longest"] = LONGEST_OUTPUT + 2 * len(json.dumps(request["chats"]))
        limits = 12 * (longest + 1000) * len(request["chats"]), longest
        with self._lock:
            reply = self._child.ask_within_limits(request, *limits)
            if "unknown" in reply:
                reply = self._child.ask_within_limits(request | {"template": template}, *limits)
        return [result["text"] if "text" in result else Refusal(result["error"]) for result in reply["results"]]

    def close(self) -> None:
        """End the child process, where there is one."""
        with self._lock:
            self._child.end()


SANDBOX = Sandbox()
