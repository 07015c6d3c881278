"""metrics.jsonl of a run as curves: read on as the file grows, in memory and time that its length does not change."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_BLOCK = 1 << 22
_LONGEST_LINE = 1 << 26
_EVALUATED = b'"val/'


class MetricsTail:
    """The lines of a metrics.jsonl, thinned out: every n-th line, all or every n-th of the evaluated ones, the last.

    `points` is about the number of lines that are kept. `lines` are in the order of their steps; `latest` has the last
    value of every name. A file that was written anew, as a resumed run does, is read anew.
    """

    def __init__(self, path: Path, points: int = 600):
        self._path, self._points = path, points
        self._reset()

    def _reset(self) -> None:
        self._file_id: tuple[int, int] | None = None
        self._offset = 0  # where the last complete line begins: it may still get longer
        self._stride = [1, 1]  # of ordinary lines, of evaluated lines
        self._kept: list[list[tuple[int, dict[str, Any]]]] = [[], []]
        self._counts = [0, 0]
        self._last: dict[str, Any] = {}
        self._earlier: dict[str, Any] = {}
        self.damaged = 0
        """Lines that are no objects with a step."""

    @property
    def latest(self) -> dict[str, Any]:
        """Last value of every name."""
        return self._earlier | self._last

    @property
    def lines(self) -> Sequence[dict[str, Any]]:
        """The lines that are kept, by step."""
        found = {line["step"]: line for kept in self._kept for _, line in kept}
        if self._last:
            found[self._last["step"]] = self._last
        return [found[step] for step in sorted(found)]

    def curve(self, name: str, x: str = "step") -> list[list[float]]:
        """Return the points [x, y] of a name."""
        return [[line[x], line[name]] for line in self.lines if _is_number(line.get(name)) and _is_number(line.get(x))]

    def refresh(self) -> bool:
        """Read what was added. Returns True if anything has changed."""
        try:
            status = self._path.stat()
        except OSError:
            changed = self._file_id is not None
            self._reset()
            return changed
        now = (status.st_ino, status.st_size)
        if self._file_id == now:
            return False
        if self._file_id is not None and (self._file_id[0] != now[0] or now[1] < self._file_id[1]):
            self._reset()
        self._file_id = now
        with self._path.open("rb") as file:
            self._read(file, status.st_size)
        return True

    def _read(self, file: Any, size: int) -> None:
        """Read from the last complete line on, which may have got longer, to the end that the file had."""
        file.seek(self._offset)
        rest, last = b"", b""
        while (left := size - file.tell()) > 0 and (block := file.read(min(_BLOCK, left))):
            *lines, rest = (rest + block).split(b"\n")
            if lines:
                self._choose_stride(lines, size)
                for line in lines[:-1]:
                    self._add(line)
                self._offset += sum(len(line) + 1 for line in lines[:-1])
                last, rest = lines[-1], lines[-1] + b"\n" + rest
            elif len(rest) > _LONGEST_LINE:
                self.damaged += 1
                self._offset, rest = file.tell(), b""
        if (parsed := self._parse(last)) is not None:
            self._last = parsed

    def _choose_stride(self, lines: list[bytes], size: int) -> None:
        """Choose which lines of a long file are parsed at all, by the mean length of its first ones."""
        if not any(self._counts):
            average = max(1, sum(map(len, lines)) // len(lines))
            while size // average // self._stride[0] > 2 * self._points:
                self._stride[0] *= 2

    def _add(self, text: bytes) -> None:
        kind = 1 if _EVALUATED in text else 0
        self._counts[kind] += 1
        if (self._counts[kind] - 1) % self._stride[kind]:
            return
        line = self._parse(text)
        if line is None:
            self.damaged += 1
            return
        self._earlier |= line
        kept = self._kept[kind]
        kept.append((self._counts[kind] - 1, line))
        if len(kept) > 2 * self._points:
            self._stride[kind] *= 2
            self._kept[kind] = [each for each in kept if each[0] % self._stride[kind] == 0]

    @staticmethod
    def _parse(text: bytes) -> dict[str, Any] | None:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            return None
        is_line = isinstance(line, dict) and isinstance(line.get("step"), int) and not isinstance(line["step"], bool)
        return line if is_line else None


def last_lines(path: Path, most_bytes: int = 1 << 16) -> list[dict[str, Any]]:
    """Return the parsed lines at the end of a metrics.jsonl, oldest first; none where there is no such file."""
    return [line for text in tail_of(path, most_bytes).split(b"\n") if (line := MetricsTail._parse(text)) is not None]


def tail_of(path: Path, most_bytes: int) -> bytes:
    """Return the last bytes of a file, from a line's begin on where it is longer; none where there is no such file."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - most_bytes))
            content = file.read(most_bytes)
    except OSError:
        return b""
    return content if size <= most_bytes else (content.partition(b"\n")[2] or content)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value and abs(value) < 1e300
