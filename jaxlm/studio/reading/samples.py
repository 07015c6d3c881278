"""samples.txt of a run: the texts that it wrote while it was trained, by step."""

import re
from dataclasses import dataclass
from pathlib import Path

from jaxlm.studio.reading.metrics_tail import tail_of
from jaxlm.studio.reading.shown_text import shown

_MOST_BYTES = 1 << 22
_HEAD = re.compile(r"(?m)^=== step (\d+)$\n?")


@dataclass(frozen=True)
class Sample:
    """A text of one step."""

    step: int
    text: str


def samples_stamp(run: Path) -> tuple[int, int] | None:
    """Return what changes with the texts of a run, None where there are none."""
    try:
        found = (run / "samples.txt").stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def read_samples(run: Path, most: int = 60) -> list[Sample]:
    """Return the last texts of a run, oldest first; none where there is no file."""
    content = tail_of(run / "samples.txt", _MOST_BYTES).decode("utf-8", "replace")
    parts = _HEAD.split(content)
    found: list[Sample] = []
    for step, text in zip(parts[1::2], parts[2::2], strict=True):
        # A text may hold such a line too; the steps of the trainer rise.
        if found and int(step) <= found[-1].step:
            found[-1] = Sample(found[-1].step, f"{found[-1].text}\n=== step {step}\n{shown(text)}")
        else:
            found.append(Sample(int(step), shown(text.rstrip("\n"))))
    return found[-most:]
