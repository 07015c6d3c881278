"""metrics.jsonl: the numbers of a run, one line per step. It is a log: training never reads a number from it."""

import json
import os
from pathlib import Path
from typing import Any

from shared_tokenizer.manifest import named_errors, write_file


class MetricsLog:
    """The file metrics.jsonl, one line per step. Opening it removes steps after `last_step` and a line cut short."""

    def __init__(self, path: Path, last_step: int):
        self._path = path
        kept = [line for line in read_metrics(path) if line["step"] <= last_step]
        write_file(path, "".join(map(_json_line, kept)).encode())
        self._last: dict[str, Any] = kept[-1] if kept else {}

    @property
    def last_step(self) -> int:
        """Step of the last line, 0 where there is none."""
        return self._last.get("step", 0)

    def write(self, values: dict[str, Any]) -> None:
        """Add a line, or add to the last line if it is of the same step. Raises OSError with the name of the file."""
        with named_errors(self._path), self._path.open("r+b") as file:
            end = file.seek(0, os.SEEK_END)
            if self._last.get("step") == values["step"]:
                end -= len(_json_line(self._last).encode())
                values = self._last | values
            file.seek(end)
            # The longer line goes over the shorter one in one write: a kill never leaves less than there was.
            file.write(_json_line(values).encode())
            file.flush()
            file.truncate()
        self._last = values


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a metrics.jsonl, without a last line that a kill cut short.

    Raises ValueError, naming the line, where one is no object with a step, or a step does not come after the one
    before.
    """
    if not path.is_file():
        return []
    lines: list[dict[str, Any]] = []
    last = 0
    for number, text in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            line = json.loads(text.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise _damaged(path, number, f"holds a line that is not JSON ({error})") from error
        step = line.get("step") if isinstance(line, dict) else None
        if not isinstance(step, int) or isinstance(step, bool):
            raise _damaged(path, number, f"found {text[:80].decode('utf-8')!r}, expected an object with a step")
        if step <= last:
            raise _damaged(path, number, f"found step {step} after step {last}, expected rising steps")
        last = step
        lines.append(line)
    return lines


def _damaged(path: Path, number: int, what: str) -> ValueError:
    return ValueError(f"{path}: {what}, line {number}; repair it or move the file away")


def _json_line(values: dict[str, Any]) -> str:
    return json.dumps(values) + "\n"
