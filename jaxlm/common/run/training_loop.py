"""The loop around a training step, the same in JAX and in MLX."""

import contextlib
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, SupportsFloat, TypeVar

from jaxlm.common.run.run_config import RunConfig, StepsConfig
from jaxlm.common.run.run_directory import RunDirectory
from jaxlm.common.run.training_report import TrainingReport
from jaxlm.common.sampling import Sampling
from shared_tokenizer.manifest import write_file

Found = TypeVar("Found")


class TrainingRun(Protocol[Found]):
    """A run whose state is somewhere between two steps. Every method may raise StopRequested, except `save`."""

    def take_step(self, step: int) -> Mapping[str, SupportsFloat]:
        """Train on the next batch and return its metrics, which the device may still be computing."""
        ...

    def check_stop(self) -> None:
        """Raise StopRequested if this process, or another of the run, was asked to stop."""
        ...

    def evaluate(self, step: int) -> Found:
        """Compute and report the numbers on what is held out."""
        ...

    def sample(self, step: int) -> str:
        """Generate a text, add it to samples.txt, and return it."""
        ...

    def save(self, evaluation: Found | None) -> None:
        """Save a checkpoint of the last complete step. The evaluation is that of the same step, if there was one."""
        ...


def train_steps(run: TrainingRun[Any], config: StepsConfig, report: TrainingReport, first: int, last: int) -> None:
    """Take the steps `first` to `last`, and evaluate, sample and save between them when that is due.

    What is due after the last step is left to the caller, who has more to do with it. Raises StopRequested where a stop
    was asked for, FloatingPointError where the loss is no longer finite.
    """
    with report.training():
        for step in range(first, last + 1):
            # The device works on this step while the report reads the numbers of the one before.
            report.step(step, run.take_step(step))
            run.check_stop()
            evaluation = run.evaluate(step) if _is_due(step, config.eval_every_steps, last) else None
            if _is_due(step, config.sample_every_steps, last):
                run.sample(step)
            if _is_due(step, config.checkpoint_every_steps, last):
                run.save(evaluation)
        report.flush()


def _is_due(step: int, every: int, last: int) -> bool:
    return every > 0 and step % every == 0 and step != last


def sample_settings(config: RunConfig, step: int) -> Sampling:
    """Return the settings of a text sample; its random choices depend on (seed, step) alone."""
    return Sampling(max_tokens=config.sample_tokens, temperature=0.7, top_p=0.95, seed=config.seed + step)


def write_sample(path: Path, step: int, text: str) -> None:
    """Add a text to a run's samples.txt, in place of those of this step and later ones that a resumed run repeats."""
    kept = "".join(_block(before, said) for before, said in read_samples(path) if before < step)
    write_file(path, f"{kept}{_block(step, text)}".encode())


def read_samples(path: Path) -> list[tuple[int, str]]:
    """Return the steps and texts of a run's samples.txt."""
    before = path.read_text("utf-8", "replace") if path.is_file() else ""
    found: list[tuple[int, str]] = []
    for block in re.split(r"(?m)^(?==== step \d+$)", before):
        head = re.match(r"=== step (\d+)\n", block)
        # A text may hold such a line too; the steps of the trainer rise.
        if head and int(head[1]) > (found[-1][0] if found else 0):
            found.append((int(head[1]), block[head.end() :].removesuffix("\n")))
        elif found:
            found[-1] = (found[-1][0], f"{found[-1][1]}\n{block}".removesuffix("\n"))
    return found


def _block(step: int, text: str) -> str:
    return f"=== step {step}\n{text}\n"


def write_event(run: RunDirectory, text: str) -> None:
    """Add a line with the time to a run's run.log, which tells its story also where nobody reads the output."""
    with contextlib.suppress(OSError), run.log.open("a", encoding="utf-8") as file:
        file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {text}\n")
