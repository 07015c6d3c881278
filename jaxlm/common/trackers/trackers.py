"""The trackers of a run: what metrics.jsonl, samples.txt and the result hold goes to all that were chosen.

The files of the run are the truth. A tracker that is opened gets everything that they hold, unless it has it already;
so a run that was killed, resumed or finished long ago is reported without a gap, and without a step that comes twice.
"""

import contextlib
import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxlm.common.next_command import next_command
from jaxlm.common.run.metrics_log import read_metrics
from jaxlm.common.run.run_directory import RunDirectory, read_settings
from jaxlm.common.run.training_loop import read_samples
from jaxlm.common.trackers.tracker import TrackedRun, Tracker
from shared_tokenizer.manifest import MANIFEST

# Names that texts and pictures have in a tracker.
SAMPLE, PICTURES, RESULT = "sample", "pictures", "result/manifest"


class Trackers:
    """The chosen trackers of a run. One that fails is told of once and left out: no tracker is worth a run."""

    def __init__(self, names: Sequence[str], run: RunDirectory, settings_file: str, log: Callable[[str], None]):
        self._names, self._run, self._settings_file, self._log = list(names), run, settings_file, log
        self._open: dict[str, Tracker] = {}
        self._samples: list[tuple[int, str]] = []  # those that wait for the next line
        self._samples_at: tuple[int, int] | None = None  # size and time of samples.txt when it was read
        self._last_sample = 0
        self._last_step = 0

    @property
    def failed(self) -> bool:
        """True where a chosen tracker was left out."""
        return len(self._open) < len(self._names)

    def begin(self) -> None:
        """Open the trackers, and send all that the files of the run hold. Called once metrics.jsonl is in order."""
        if not self._names:
            return
        lines, path = read_metrics(self._run.metrics), self._run.path.absolute()
        config = read_settings(path, self._settings_file)
        for name in self._names:
            tracked = TrackedRun(path.name, path.parent.name, config, path / name, lines[-1]["step"] if lines else 0)
            with self._guarded(name):
                self._open[name] = importlib.import_module(f"jaxlm.common.trackers.{name}_tracker").open_tracker(
                    tracked
                )
        for line in lines:
            self.write(line)

    def write(self, line: dict[str, Any]) -> None:
        """Send a line of metrics.jsonl, and before it the samples of steps before its own."""
        if self._open:
            step = self._last_step = line["step"]
            self._send_samples(step)
            # Lists, such as shares by layer, are left out: a chart for each layer would bury the others.
            values = {name: float(value) for name, value in line.items() if name != "step" and _is_number(value)}
            self._each(step, lambda tracker: tracker.numbers(step, values))

    def close(self, *, failed: bool) -> None:
        """Send the last samples, the pictures and the manifest of the result, and end the records."""
        if not self._open:
            return
        self._send_samples(math.inf)
        run, step = self._run, max(self._last_step, self._last_sample)
        for path in (run.loss_plot, run.reward_plot):
            if path.is_file():
                name = f"{PICTURES}/{path.stem}"
                self._each(None, lambda tracker, name=name, path=path: tracker.picture(step, name, path))
        for result in (run.artifact, run.adapters):
            if (result / MANIFEST).is_file():
                text = (result / MANIFEST).read_text("utf-8", "replace")
                self._each(None, lambda tracker, text=text: tracker.text(step, RESULT, text))
        for name, tracker in list(self._open.items()):
            with self._guarded(name):
                tracker.close(failed=failed)
        self._names = [name for name in self._names if name not in self._open]
        self._open.clear()

    def _send_samples(self, before: float) -> None:
        """Send the samples of samples.txt that are new and of steps before one: steps never fall in a tracker."""
        with contextlib.suppress(OSError):
            found = self._run.samples.stat()
            if (found.st_size, found.st_mtime_ns) != self._samples_at:
                self._samples_at = (found.st_size, found.st_mtime_ns)
                self._samples = [each for each in read_samples(self._run.samples) if each[0] > self._last_sample]
        while self._samples and self._samples[0][0] < before:
            step, text = self._samples.pop(0)
            self._last_sample = step
            self._each(step, lambda tracker, step=step, text=text: tracker.text(step, SAMPLE, text))

    def _each(self, step: int | None, send: Callable[[Tracker], None]) -> None:
        """Send something of a step to the trackers that do not have it yet; without a step to all of them."""
        for name, tracker in list(self._open.items()):
            if step is None or step > tracker.sent:
                with self._guarded(name):
                    send(tracker)

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        """Leave a tracker out that raises an error, and say so."""
        try:
            yield
        except Exception as error:  # of a foreign program: any may come
            self._open.pop(name, None)
            text = " ".join(str(error).split())[:200] or type(error).__name__
            way_out = next_command("report", str(self._run.path), "--to", name)
            self._log(f"note: {name} takes no more of {self._run.path}: {text}. Send it afterwards: {way_out}")


@contextlib.contextmanager
def open_trackers(
    names: Sequence[str], run: RunDirectory | None, settings_file: str, log: Callable[[str], None]
) -> Iterator[Trackers]:
    """Yield the trackers of a run, not yet begun, and end their records with the block. None of them without a run."""
    trackers = Trackers(names if run is not None else (), run or RunDirectory(Path()), settings_file, log)
    try:
        yield trackers
    except BaseException:
        trackers.close(failed=True)
        raise
    trackers.close(failed=False)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
