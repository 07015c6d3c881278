"""Completions as they come, in a file next to the output, so that a killed command goes on where it was."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

# Number of a prompt in its file, from 0, and of its sample.
Key = tuple[int, int]


class BegunCompletions:
    """Lines `{"of": number of the prompt, ...}` of an unfinished output, after one that tells what they belong to.

    Use it as a context manager. `done` holds the lines of an earlier command with the same `belongs_to`.
    """

    def __init__(self, output: Path, belongs_to: Mapping[str, Any], log: Callable[[str], None]):
        self.path = output.with_name(f"{output.name}.part")
        self.done = dict[Key, dict[str, Any]]()
        text = json.dumps(belongs_to, sort_keys=True)
        self._head = json.dumps({"belongs_to": hashlib.sha256(text.encode()).hexdigest()}) + "\n"
        self._log = log
        self._file: IO[str] | None = None

    def __enter__(self) -> "BegunCompletions":
        begun = self._read()
        self._file = self.path.open("w" if begun is None else "a", encoding="utf-8")
        if begun is None:
            self._write(self._head)
        elif begun:
            self._log(f"{self.path}: {len(self.done):,} texts are done already")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, key: Key, row: Mapping[str, Any]) -> None:
        """Write a completion; it survives the end of the process."""
        self.done[key] = dict(row)
        self._write(json.dumps({"of": key, **row}, ensure_ascii=False) + "\n")

    def remove(self) -> None:
        """Remove the file: the output is complete."""
        self.path.unlink(missing_ok=True)

    def _write(self, line: str) -> None:
        if self._file is None:
            raise RuntimeError("found a file that is not open, expected it in a with statement")
        self._file.write(line)
        self._file.flush()

    def _read(self) -> int | None:
        """Read what is done, and cut off a line that is not whole. Returns the lines, None where there are none."""
        if not self.path.is_file():
            return None
        with self.path.open("rb+") as file:
            if file.readline() != self._head.encode():
                self._log(f"{self.path}: belongs to another model, prompts or settings: begun anew")
                return None
            whole = file.tell()
            for line in file:
                try:
                    row = json.loads(line)
                    key = tuple(row.pop("of"))
                except (ValueError, AttributeError, KeyError, TypeError):
                    break
                if not line.endswith(b"\n") or len(key) != 2:
                    break
                self.done[key] = row
                whole += len(line)
            file.truncate(whole)
        return len(self.done)
