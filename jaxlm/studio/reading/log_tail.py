"""The log of a job or run, read on as it grows: lines that a page can show, mistakes marked."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxlm.studio.reading.metrics_tail import tail_of
from jaxlm.studio.reading.shown_text import shown_line

Kind = Literal["plain", "error", "warning", "command"]
FIRST_BYTES = 1 << 16
_MOST_BYTES = 1 << 18
_ERROR = re.compile(r"^\S*(error|Error|Exception|Traceback)\b|^(Killed|Segmentation fault)")


@dataclass(frozen=True)
class LogLine:
    """One line, as a page shows it."""

    text: str
    kind: Kind


class LogTail:
    """The lines of a file since the last look; at first those of its end."""

    def __init__(self, path: Path):
        self._path = path
        self._offset: int | None = None
        self._rest = b""

    def more(self) -> list[LogLine]:
        """Return the lines that were added, the last one only once it has ended."""
        try:
            size = self._path.stat().st_size
        except OSError:
            return []
        if self._offset is None or size < self._offset or size - self._offset > _MOST_BYTES:
            content, self._rest = tail_of(self._path, FIRST_BYTES), b""
        elif size > self._offset:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                content = file.read(size - self._offset)
        else:
            return []
        self._offset = size
        *lines, self._rest = (self._rest + content).split(b"\n")
        if len(self._rest) > _MOST_BYTES:  # a line that does not end is shown cut
            lines, self._rest = [*lines, self._rest], b""
        return [log_line(line.decode("utf-8", "replace")) for line in lines]


def log_line(text: str) -> LogLine:
    """Return a line of a log with its kind."""
    line = shown_line(text)
    if line.startswith("$ "):
        return LogLine(line, "command")
    if _ERROR.match(line):
        return LogLine(line, "error")
    return LogLine(line, "warning" if line.startswith(("warning:", "note:")) else "plain")


def last_error(path: Path) -> str | None:
    """Return the last line of a log that tells a mistake, with its way out; None where there is none."""
    return next((line.text for line in _last_lines(path) if line.kind == "error"), None)


def last_line(path: Path, begin: str) -> str | None:
    """Return the last line of a log that begins so; None where there is none."""
    return next((line.text for line in _last_lines(path) if line.text.startswith(begin)), None)


def _last_lines(path: Path) -> list[LogLine]:
    """Return the last lines of a log, the newest first."""
    lines = tail_of(path, FIRST_BYTES).decode("utf-8", "replace").splitlines()
    return [log_line(line) for line in reversed(lines)]
