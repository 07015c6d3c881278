"""The report of a run while it trains: a progress bar, lines of history, metrics.jsonl and loss.png."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, SupportsFloat

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxlm.common.run.metrics_log import MetricsLog, read_metrics
from jaxlm.common.run.run_directory import RunDirectory
from jaxlm.common.run.summary import plot_losses
from jaxlm.common.ternary_health import FLIPS, ZEROS

# Steps after which the time of the whole run is estimated.
_STEPS_TO_TIME = 10
# loss.png is drawn anew after so many seconds, and so seldom that drawing takes less than 1 % of the time.
_FIRST_PLOT_SECONDS = 3.0
_PLOT_SECONDS = 30.0
_PLOT_SHARE = 0.01


@dataclass(frozen=True)
class ReportPlan:
    """The size of a run, as its report counts it."""

    num_train_steps: int
    log_every_steps: int
    tokens_per_step: int
    tokens_per_epoch: int
    """Tokens of one pass over the training data."""


class Follower(Protocol):
    """Gets every line of metrics.jsonl once it is written."""

    def begin(self) -> None:
        """Take up what the file holds: it is in order, and the first step is still to come."""
        ...

    def write(self, line: dict[str, Any]) -> None:
        """Take a line; of a step that had one already, what is new of it."""
        ...


def draw_losses(run: RunDirectory, lines: Sequence[dict[str, Any]]) -> None:
    """Draw loss.png of the lines of metrics.jsonl."""
    plot_losses(lines, run.loss_plot)


class TrainingReport:
    """Reads the numbers of each step while the device works on the next, and reports them.

    Speed is counted between the moments when steps are dispatched, less the pauses: the moment when numbers are read
    tells little, because some devices work while the next step is dispatched and others before. `metrics` and
    `loss_plot` are the files to write, None for none; `last_checkpoint` returns the step of the newest checkpoint, for
    the message of a run that has diverged. `draw` draws the curves of a run. `follower` gets the lines too.
    """

    def __init__(
        self,
        plan: ReportPlan,
        run: RunDirectory | None,
        first_step: int,
        last_checkpoint: Callable[[], int | None],
        console: Console,
        draw: Callable[[RunDirectory, Sequence[dict[str, Any]]], None] = draw_losses,
        follower: Follower | None = None,
    ):
        self._plan, self._console, self._last_checkpoint = plan, console, last_checkpoint
        self._run, self._draw, self._follower = run, draw, follower
        self._metrics = None if run is None else MetricsLog(run.metrics, first_step)
        if run is not None and self._metrics is not None:
            ends = self._metrics.last_step
            if ends + plan.log_every_steps <= first_step:
                console.print(
                    f"note: {run.metrics} ends at step {ends}, before the run's {first_step}: lines are missing"
                )
        self._pending: tuple[int, Mapping[str, SupportsFloat], float] | None = None  # and when it was dispatched
        self._first = first_step + 1
        self._last_log = (first_step, 0.0)  # step of the last line, and when it was dispatched
        self._latest: dict[str, Any] = {}  # the numbers of the last line
        self._next_plot = 0.0  # the time from which the next picture is due
        self._progress = _progress_bar(console)
        self._task = self._progress.add_task(
            "training", total=plan.num_train_steps, completed=first_step, loss="", speed=""
        )

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Count time as training and show the progress bar while entered."""
        if self._follower is not None:
            self._follower.begin()
        self._last_log = (self._last_log[0], time.perf_counter())
        self._next_plot = time.monotonic() + _FIRST_PLOT_SECONDS
        with self._progress:
            yield

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Report the pending step, then keep the time spent inside out of the training speed."""
        self.flush()
        start = time.perf_counter()
        yield
        step, before = self._last_log
        self._last_log = (step, before + time.perf_counter() - start)

    def step(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
        """Report the step before. The numbers of this one wait until its device has them, except those of the first."""
        self.flush()
        dispatched = time.perf_counter()
        self._pending = (step, metrics, dispatched)
        if step == self._first:
            # No step was dispatched before it to count from, so it is timed alone.
            self.flush()
            self._last_log = (step, dispatched)
            self._started = dispatched

    def flush(self) -> None:
        """Report the pending step. Raises FloatingPointError where its numbers are not finite."""
        if self._pending is None:
            return
        (step, metrics, dispatched), self._pending = self._pending, None
        for name in ("train/loss", "train/grad_norm", "train/param_norm"):
            if not math.isfinite(value := float(metrics[name])):
                raise FloatingPointError(
                    f"step {step}: {name} is {value}; {self._newest_checkpoint()}. Lower optimizer.learning_rate and "
                    "start a new run"
                )
        if float(metrics.get("train/loss_scale", 1)) < 1:
            raise FloatingPointError(
                f"step {step}: gradients overflow float16 even unscaled; {self._newest_checkpoint()}. Lower "
                f"optimizer.learning_rate and start a new run, or take --dtype float32"
            )
        shown: dict[str, Any] = {"loss": f"loss {float(metrics['train/loss']):.4f}"}
        if self._is_log_step(step):
            end = time.perf_counter() if step == self._first else dispatched
            shown["speed"] = f"{self._log(step, metrics, end):,.0f} tokens/s"
            if time.monotonic() >= self._next_plot:
                start = time.perf_counter()
                self._plot()
                self._last_log = (step, end + time.perf_counter() - start)
        if step == self._first + _STEPS_TO_TIME and step < self._plan.num_train_steps:
            seconds = (dispatched - self._started) / _STEPS_TO_TIME * (self._plan.num_train_steps - step)
            self._console.print(f"about {duration(seconds)} to go, at the speed of the first {_STEPS_TO_TIME} steps")
        self._progress.update(self._task, completed=step, **shown)

    def evaluation(
        self, step: int, loss: float, bits_per_byte: float, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Report the held-out loss in nats per token and in bits per byte: a line of history, and loss.png anew."""
        self.held_out(
            step, {"val/loss": loss, "val/bits_per_byte": bits_per_byte, **(metrics or {})}, f"held-out {loss:.3f}"
        )

    def held_out(self, step: int, values: Mapping[str, float], words: str) -> None:
        """Report numbers on what is held out: a line of history with them in words, and the curves anew."""
        plan = self._plan
        tokens = step * plan.tokens_per_step
        self._write({"step": step, **values, "data/tokens_seen": tokens})
        self._plot()
        history = [f"step {step}", f"epoch {tokens / plan.tokens_per_epoch:.2f}"]
        if "train/learning_rate" in self._latest:
            history.append(f"lr {self._latest['train/learning_rate']:.1e}")
        if self._latest:
            history.append(f"loss {self._latest['train/loss']:.3f}")
        history.append(words)
        if self._latest:
            history.append(f"{self._latest['perf/tokens_per_second']:,.0f} tokens/s")
        self._console.print("  ".join(history))

    def overfitting(self, last_loss: float) -> str | None:
        """Return a warning where an earlier evaluation of the run was better than the last by more than 1 %."""
        lines = [] if self._run is None else [line for line in read_metrics(self._run.metrics) if "val/loss" in line]
        best = min(lines, key=lambda line: line["val/loss"], default=None)
        if best is None or best["val/loss"] >= 0.99 * last_loss:
            return None
        return (
            f"warning: the held-out loss was lower at step {best['step']} ({best['val/loss']:.4f}) and has risen "
            "since: the model overfits; train on more text, or for fewer steps"
        )

    def _newest_checkpoint(self) -> str:
        step = self._last_checkpoint()
        return "there is no checkpoint yet" if step is None else f"the last checkpoint is of step {step}"

    def _is_log_step(self, step: int) -> bool:
        return step == 1 or step % self._plan.log_every_steps == 0 or step == self._plan.num_train_steps

    def _log(self, step: int, metrics: Mapping[str, SupportsFloat], end: float) -> float:
        """Write a line of metrics, and return the tokens per second since the one before."""
        plan = self._plan
        last_step, last_end = self._last_log
        self._last_log = (step, end)
        speed = (step - last_step) * plan.tokens_per_step / (end - last_end)
        line: dict[str, Any] = {"step": step, **{name: _plain(value) for name, value in metrics.items()}}
        line |= {
            "data/tokens_seen": step * plan.tokens_per_step,
            "perf/tokens_per_second": round(speed, 1),
            "perf/step_time_ms": round(1000 * (end - last_end) / (step - last_step), 2),
        }
        self._write(line)
        self._latest = line
        if not self._console.is_terminal:
            seconds = (plan.num_train_steps - step) * plan.tokens_per_step / speed
            health = ""
            if FLIPS in line:
                health = f"  zeros {line[ZEROS]:.1%}  flips {line[FLIPS]:.2%}"
            if "reward/mean" in line:
                health = f"  reward {line['reward/mean']:.3f}{health}"
            self._console.print(
                f"step {step}/{plan.num_train_steps}  loss {line['train/loss']:.4f}{health}  "
                f"{speed:,.0f} tokens/s  {duration(seconds)} left"
            )
        return speed

    def _plot(self) -> None:
        """Draw loss.png."""
        if self._run is not None:
            start = time.monotonic()
            try:
                self._draw(self._run, read_metrics(self._run.metrics))
            except (OSError, ValueError) as error:  # a picture is not worth a run, a damaged log neither
                self._console.print(f"note: the curves of {self._run.path} could not be drawn: {error}")
            end = time.monotonic()
            self._next_plot = end + max(_PLOT_SECONDS, (end - start) / _PLOT_SHARE)

    def _write(self, line: dict[str, Any]) -> None:
        if self._metrics is not None:
            self._metrics.write(line)
        if self._follower is not None:
            self._follower.write(line)


def _plain(value: Any) -> float | list[float | None]:
    """Return a number, or the numbers of an array to five digits, which are enough for a picture; None for NaN."""
    if not getattr(value, "ndim", 0):
        return float(value)
    return [None if math.isnan(each) else float(f"{each:.5g}") for each in value.tolist()]


def duration(seconds: float) -> str:
    """Return a time for people: `42 s`, `3 min 20 s`, `5 h 12 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _progress_bar(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),  # all of it fits in 80 columns
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal)
