"""What a run says while it trains: progress on the terminal and lines of metrics.jsonl, as long as its numbers are
finite.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, SupportsFloat

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxlm.common.run.metrics_log import MetricsLog


class ReportSettings(Protocol):
    """What a report needs to know of a run's settings."""

    @property
    def num_train_steps(self) -> int: ...

    @property
    def log_every_steps(self) -> int: ...

    @property
    def tokens_per_step(self) -> int: ...


class TrainingReport:
    """Reads the numbers of each step while the device works on the next, and reports them.

    Speed is counted from one step that is handed over to the next, less the pauses: when numbers are read says little
    of when a step was done, because some devices work while the next step is handed over, and others before.
    `metrics` is the file to write, None for none; `last_checkpoint` gives the step of the newest checkpoint, for the
    message of a run that has diverged.
    """

    def __init__(
        self,
        config: ReportSettings,
        metrics: Path | None,
        first_step: int,
        last_checkpoint: Callable[[], int | None],
        console: Console,
    ):
        self._config, self._console, self._last_checkpoint = config, console, last_checkpoint
        self._metrics = None if metrics is None else MetricsLog(metrics, first_step)
        self._pending: tuple[int, Mapping[str, SupportsFloat], float] | None = None  # and when it was handed over
        self._first = first_step + 1
        self._last_log = (first_step, 0.0)  # step of the last line, and when it was handed over
        self._progress = _progress_bar(console)
        self._task = self._progress.add_task(
            "training", total=config.num_train_steps, completed=first_step, loss="", speed=""
        )

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """While entered, time counts as training and the progress bar is shown."""
        self._last_log = (self._last_log[0], time.perf_counter())
        with self._progress:
            yield

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Read what is pending, then keep the time spent inside out of the training speed."""
        self.flush()
        start = time.perf_counter()
        yield
        step, before = self._last_log
        self._last_log = (step, before + time.perf_counter() - start)

    def step(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
        """Report the step before; this one's numbers wait until its device has them, except for the first's."""
        self.flush()
        handed_over = time.perf_counter()
        self._pending = (step, metrics, handed_over)
        if step == self._first:
            # No step was handed over before it to count from, so it counts by itself.
            self.flush()
            self._last_log = (step, handed_over)

    def flush(self) -> None:
        """Report the step whose numbers wait; raises FloatingPointError where they are not finite."""
        if self._pending is None:
            return
        (step, metrics, handed_over), self._pending = self._pending, None
        for name in ("train/loss", "train/grad_norm", "train/param_norm"):
            if not math.isfinite(value := float(metrics[name])):
                raise FloatingPointError(
                    f"step {step}: {name} is {value}; {self._left()}. Lower optimizer.learning_rate and start a new run"
                )
        if float(metrics.get("train/loss_scale", 1)) < 1:
            raise FloatingPointError(
                f"step {step}: gradients overflow float16 even unscaled; {self._left()}. Lower "
                f"optimizer.learning_rate and start a new run, or take --dtype float32"
            )
        shown: dict[str, Any] = {"loss": f"loss {float(metrics['train/loss']):.4f}"}
        if self._is_log_step(step):
            end = time.perf_counter() if step == self._first else handed_over
            shown["speed"] = f"{self._log(step, metrics, end):,.0f} tokens/s"
        self._progress.update(self._task, completed=step, **shown)

    def evaluation(
        self, step: int, loss: float, bits_per_byte: float, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Report the held-out loss, in nats per token and in bits per byte, with other numbers of the model then."""
        line = {"step": step, "val/loss": loss, "val/bits_per_byte": bits_per_byte, **(metrics or {})}
        self._write(line | {"data/tokens_seen": step * self._config.tokens_per_step})
        self._console.print(f"step {step}  held-out loss {loss:.4f}  {bits_per_byte:.4f} bits per byte")

    def _left(self) -> str:
        """What there is to go back to."""
        step = self._last_checkpoint()
        return "there is no checkpoint yet" if step is None else f"the last checkpoint is of step {step}"

    def _is_log_step(self, step: int) -> bool:
        return step == 1 or step % self._config.log_every_steps == 0 or step == self._config.num_train_steps

    def _log(self, step: int, metrics: Mapping[str, SupportsFloat], end: float) -> float:
        """Write a line, and return the tokens per second from the last until `end`."""
        config = self._config
        last_step, last_end = self._last_log
        self._last_log = (step, end)
        speed = (step - last_step) * config.tokens_per_step / (end - last_end)
        line = {"step": step, **{name: float(value) for name, value in metrics.items()}}
        line |= {
            "data/tokens_seen": step * config.tokens_per_step,
            "perf/tokens_per_second": round(speed, 1),
            "perf/step_time_ms": round(1000 * (end - last_end) / (step - last_step), 2),
        }
        self._write(line)
        if not self._console.is_terminal:
            eta = (config.num_train_steps - step) * config.tokens_per_step / speed
            health = ""
            if "ternary/flip_rate" in line:
                health = f"  zeros {line['ternary/zero_fraction']:.1%}  flips {line['ternary/flip_rate']:.2%}"
            self._console.print(
                f"step {step}/{config.num_train_steps}  loss {line['train/loss']:.4f}{health}  "
                f"{speed:,.0f} tokens/s  {eta:.0f} s left"
            )
        return speed

    def _write(self, line: dict[str, Any]) -> None:
        if self._metrics is not None:
            self._metrics.write(line)


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
