"""metrics.jsonl: the numbers of a run, one line per step."""

import json
import os
from pathlib import Path
from typing import Any

from shared_tokenizer.manifest import write_file


class MetricsLog:
    """The file metrics.jsonl, one line per step. Opening it removes steps after `last_step` and a line cut short."""

    def __init__(self, path: Path, last_step: int):
        self._path = path
        kept = [line for line in read_metrics(path) if line["step"] <= last_step]
        write_file(path, "".join(map(_json_line, kept)).encode())
        self._last: dict[str, Any] = kept[-1] if kept else {}

    def write(self, values: dict[str, Any]) -> None:
        """Add a line, or add to the last line if it is of the same step."""
        with self._path.open("r+", encoding="utf-8") as file:
            end = file.seek(0, os.SEEK_END)
            if self._last.get("step") == values["step"]:
                end -= len(_json_line(self._last))
                values = self._last | values
            file.seek(end)
            file.truncate()
            file.write(_json_line(values))
        self._last = values


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a metrics.jsonl, without a last line that a kill cut short."""
    if not path.is_file():
        return []
    lines = path.read_text("utf-8").split("\n")[:-1]
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise ValueError(f"{path}: holds a line that is not JSON ({error}); repair it or move the file away") from error


def _json_line(values: dict[str, Any]) -> str:
    return json.dumps(values) + "\n"
