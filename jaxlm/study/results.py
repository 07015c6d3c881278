"""The results of a study: its runs read back, and compared variant by variant."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jaxlm.common.architecture.config import config_from_dict
from jaxlm.common.architecture.parameters import parameter_count, tensor_bytes
from jaxlm.common.run.metrics_log import read_metrics
from jaxlm.common.run.run_directory import RunDirectory, read_run_config
from jaxlm.common.ternary_health import FLIPS, ZEROS
from jaxlm.study.statistics import Sample, paired_difference, sample
from jaxlm.study.study import Study
from jaxlm.study.train_run import EVALUATION, Job, has_ended, read_costs, read_failure


@dataclass(frozen=True)
class RunResult:
    """The numbers of one run that has ended."""

    variant: str
    seed: int
    error: str | None
    """The reason why it ended before its last step; None for a run that is done."""
    bits_per_byte: float | None
    """Held-out, at the last step; None for a run that failed."""
    loss: float | None
    """Held-out, in nats per token."""
    tokens: int
    parameters: int
    artifact_bytes: int
    """Tensors of the artifact."""
    tokens_per_second: float | None
    """Median over the lines of metrics.jsonl."""
    seconds: float
    """Wall time of training with its compilation and evaluations, resumed parts added up."""
    peak_bytes: int | None
    """Largest resident memory of the training process."""
    zero_fraction: float | None
    """Share of zero codes at the last step."""
    flip_rate: float | None
    """Share of codes that a step changes, mean of the last tenth of the steps."""
    machine: str | None
    date: str | None
    commit: str | None
    """Where, when and by which code the run was done."""
    curve: list[tuple[int, float]] = field(repr=False)
    """Tokens seen and held-out bits per byte at each evaluation."""
    evaluation: dict[str, Any] | None = field(default=None, repr=False)
    """Numbers of `jaxlm evaluate --json`, if the study evaluates."""

    @property
    def test_bits_per_byte(self) -> float | None:
        """Bits per byte on the text that the study evaluates on; None where it names none, and for a failed run."""
        models = {} if self.evaluation is None or self.error is not None else self.evaluation.get("models", {})
        return next((numbers.get("bits_per_byte") for numbers in models.values()), None)


def read_result(job: Job) -> RunResult:
    """Return the numbers of a run that has ended, by what it has written. Raises ValueError on damaged files."""
    run, error = RunDirectory(job.directory), read_failure(job.directory)
    config = config_from_dict(read_run_config(job.directory)["model"])
    lines = read_metrics(run.metrics)
    evaluated = [line for line in lines if "val/bits_per_byte" in line]
    trained = [line for line in lines if "train/loss" in line]
    last = evaluated[-1] if evaluated and error is None else {}
    costs = [cost for cost in read_costs(job.directory) if cost["command"] == "train"]
    speeds = [line["perf/tokens_per_second"] for line in trained[1:]]
    flips = [line[FLIPS] for line in trained[-max(1, len(trained) // 10) :] if FLIPS in line]
    evaluation = job.directory / EVALUATION
    origin = costs[-1] if costs else {}
    return RunResult(
        variant=job.run.variant,
        seed=job.run.seed,
        error=error,
        bits_per_byte=last.get("val/bits_per_byte"),
        loss=last.get("val/loss"),
        tokens=max((line.get("data/tokens_seen", 0) for line in lines), default=0),
        parameters=parameter_count(config),
        artifact_bytes=tensor_bytes(config, "packed" if config.has_packed_form else "latent"),
        tokens_per_second=statistics.median(speeds) if speeds else None,
        seconds=round(sum(cost["seconds"] for cost in costs), 1),
        peak_bytes=max((cost["peak_bytes"] for cost in costs), default=None),
        zero_fraction=trained[-1].get(ZEROS) if trained else None,
        flip_rate=statistics.fmean(flips) if flips else None,
        machine=origin.get("machine"),
        date=origin.get("date"),
        commit=origin.get("commit"),
        curve=[(line["data/tokens_seen"], line["val/bits_per_byte"]) for line in evaluated],
        evaluation=json.loads(evaluation.read_text("utf-8")) if evaluation.is_file() else None,
    )


def read_recorded(study: Study, path: Path) -> dict[tuple[str, int], RunResult]:
    """Return the runs in the results.json of an earlier report, by variant and seed.

    Those whose settings the study has changed since are left out. Raises ValueError where the file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text("utf-8"))
        if (content["settings"], content["evaluate"]) != (study.settings, study.evaluate):
            return {}
        known = [name for name, settings in study.variants.items() if content["variants"].get(name) == settings]
        runs = [RunResult(**row) for row in content["runs"] if row["variant"] in known and row["seed"] in study.seeds]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: no results of a study ({error}); restore the file, or remove it") from error
    return {(run.variant, run.seed): run for run in runs}


def read_results(jobs: Sequence[Job], recorded: Mapping[tuple[str, int], RunResult]) -> list[RunResult]:
    """Return the numbers of all runs that have ended, from their directories or else as they were recorded."""
    found = []
    for job in jobs:
        if has_ended(job):
            found.append(read_result(job))
        elif (job.run.variant, job.run.seed) in recorded:
            found.append(recorded[job.run.variant, job.run.seed])
    return found


@dataclass(frozen=True)
class VariantResult:
    """The runs of one variant, and their difference to those of the base."""

    name: str
    runs: Sequence[RunResult]
    base: Sequence[RunResult]

    @property
    def bits_per_byte(self) -> Sample | None:
        return self.sample("bits_per_byte")

    def sample(self, name: str) -> Sample | None:
        """Return a number of the runs, with its deviation over the seeds; None where no run has it."""
        return sample(list(_by_seed(self.runs, name).values()))

    def difference(self, name: str) -> Sample | None:
        """Return a number less that of the base, paired by seed; None for the base itself."""
        if self.runs is self.base:
            return None
        return paired_difference(_by_seed(self.runs, name), _by_seed(self.base, name))

    @property
    def failed(self) -> int:
        return sum(run.error is not None for run in self.runs)

    def mean(self, name: str) -> float | None:
        """Return the mean of a number over the runs that have it."""
        values = [value for run in self.runs if (value := getattr(run, name)) is not None]
        return statistics.fmean(values) if values else None


def by_variant(study: Study, found: Sequence[RunResult]) -> list[VariantResult]:
    """Return the results of the variants that have any, in the order of the study."""
    groups = {name: [run for run in found if run.variant == name] for name in study.variants}
    base = groups[study.base]
    return [VariantResult(name, runs, base) for name, runs in groups.items() if runs]


def _by_seed(runs: Sequence[RunResult], name: str) -> dict[int, float]:
    return {run.seed: value for run in runs if (value := getattr(run, name)) is not None}


def as_fields(run: RunResult) -> dict[str, Any]:
    """Return the numbers of a run as JSON takes them."""
    return asdict(run)
