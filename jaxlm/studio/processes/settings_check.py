"""The settings of a command as a form: their description, their words on a command line, their mistakes.

What a form may hold and what the command line takes are the same, because one process of the commands' own code says
both.
"""

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Settings whose value is a path that the command reads or writes.
PATHS = frozenset(
    ["output_dir", "data_dir", "init_from", "teacher", "compilation_cache_dir", "model", "data", "input", "tokenizer"]
)
# Settings that start something else than one training on this machine, or that a form has no use for.
LEFT_OUT = ("distributed.", "mesh.", "schedule_changes", "resume", "output_dir", "data_dir")


@dataclass(frozen=True)
class SettingField:
    """One setting of a command."""

    name: str
    group: str
    basic: bool
    resumable: bool
    kind: str
    """bool, int, float, text, choice or other (a list or mapping, as JSON)."""
    choices: tuple[str, ...]
    default: Any
    required: bool
    help: str


@dataclass(frozen=True)
class Mistake:
    """A mistake in a form, in the words of the command line. `field` is None where it belongs to no single one."""

    message: str
    field: str | None


class SettingsCheck:
    """A process that describes and checks settings, started when it is first asked."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._described: dict[str, list[SettingField]] = {}

    def describe(self, command: str) -> list[SettingField]:
        """Return the settings of a command. Raises ValueError where it cannot be opened."""
        if command not in self._described:
            answer = self._ask({"command": command, "argv": None})
            if answer.get("error"):
                raise ValueError(answer["error"])
            self._described[command] = [
                SettingField(**{**each, "choices": tuple(each["choices"])}) for each in answer["settings"]
            ]
        return self._described[command]

    def check(self, command: str, words: list[str]) -> Mistake | None:
        """Return the first mistake of the words of a command, None where it would start."""
        answer = self._ask({"command": command, "argv": words})
        return None if answer["error"] is None else Mistake(answer["error"], answer["field"])

    def warm(self) -> None:
        """Start the process ahead of the first question."""
        with contextlib.suppress(ValueError):
            self.describe("train")

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            with contextlib.suppress(BrokenPipeError), self._process:  # closes its pipes and waits
                pass
            self._process = None

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        with self._lock:
            for _ in range(2):  # one that has died is started again, once
                if self._process is None or self._process.poll() is not None:
                    self.close()
                    self._process = subprocess.Popen(
                        [sys.executable, "-m", "jaxlm.studio.processes.settings_child"],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.DEVNULL,
                        text=True,
                    )
                assert self._process.stdin is not None and self._process.stdout is not None
                try:
                    self._process.stdin.write(json.dumps(request) + "\n")
                    self._process.stdin.flush()
                    if line := self._process.stdout.readline():
                        return json.loads(line)
                except (BrokenPipeError, ValueError):
                    pass
        raise ValueError("settings: the process that checks them does not answer; start the studio again")


def to_words(values: Mapping[str, Any]) -> list[str]:
    """Return settings as the words of a command line; those that are None or an empty text are left out."""
    words: list[str] = []
    for name, value in values.items():
        if value is None or value == "":
            continue
        if isinstance(value, list) and name in PATHS:
            words += [f"--{name}", *map(str, value)]
            continue
        word = _word(value)
        # A value that looks like a flag has to stand in its word.
        words += [f"--{name}={word}"] if word.startswith("-") else [f"--{name}", word]
    return words


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | dict):
        return json.dumps(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value)


def to_nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by dotted names as nested mappings, as a YAML file has them."""
    nested: dict[str, Any] = {}
    for name, value in values.items():
        if value is None or value == "":
            continue
        *parents, last = name.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return nested


def is_path(name: str) -> bool:
    """Return True if a setting names a file or folder."""
    return name in PATHS
