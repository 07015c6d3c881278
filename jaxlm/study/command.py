"""The command `jaxlm study`: the training runs of a study, one after another, and their comparison."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from jaxlm.common.command_line import make_console
from jaxlm.common.run.training_report import duration
from jaxlm.study.report import RESULTS, terminal_table, write_report
from jaxlm.study.results import RunResult, read_recorded, read_result, read_results
from jaxlm.study.study import Study, read_study
from jaxlm.study.study_config import StudyConfig
from jaxlm.study.train_run import Job, do_run, has_ended
from shared_tokenizer.manifest import refuse_inside_sealed
from shared_tokenizer.preparation.executors import run_jobs

# Of an array of jobs; Slurm sets both in each of its tasks.
_ARRAY = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT")


def main(config: StudyConfig) -> None:
    """Do the runs of a study that are not done yet, then compare all. It may be stopped at any time: started again, it
    goes on."""
    console, path = make_console(), Path(config.study)
    study = read_study(path)
    runs = Path(config.output_dir or Path("runs") / study.name).absolute()
    results = Path(config.results_dir) if config.results_dir else path.with_suffix("")
    refuse_inside_sealed(results)
    jobs = [Job(run, runs, tuple(config.report_to)) for run in study.runs()]
    study.check(runs)
    console.print(
        f"{study.question}\n{len(study.variants)} variants, {len(study.seeds)} seeds: {len(jobs)} runs in {runs}"
    )
    recorded = read_recorded(study, results / RESULTS)
    _do_runs(study, jobs, recorded, config, results, console)
    found = read_results(jobs, recorded)
    write_report(study, found, results)
    console.print(terminal_table(study, found, console.width))
    console.print(f"results: {results / RESULTS}")


def _do_runs(
    study: Study,
    jobs: Sequence[Job],
    recorded: Mapping[tuple[str, int], RunResult],
    config: StudyConfig,
    results: Path,
    console: Console,
) -> None:
    """Do the runs that are left; on this machine, write the report after each."""
    left = _left(jobs, recorded)
    if len(left) < len(jobs):
        console.print(f"{len(jobs) - len(left)} of them have ended already")
    if config.executor == "slurm":
        left = _part_of_array(left, jobs)
    executor = "ray" if config.executor == "ray" else "local"
    for job, seconds in zip(left, run_jobs(do_run, left, executor, 1), strict=True):
        console.print(_line(read_result(job), seconds))
        if executor == "local" and config.executor != "slurm":
            write_report(study, read_results(jobs, recorded), results)


def _left(jobs: Sequence[Job], recorded: Mapping[tuple[str, int], RunResult]) -> list[Job]:
    """Return the runs to do: those that have not ended, and recorded ones whose directory a run to do names."""
    open_jobs = [job for job in jobs if not has_ended(job)]
    left = [job for job in open_jobs if (job.run.variant, job.run.seed) not in recorded]
    while needed := [
        job for job in open_jobs if job not in left and any(other.run.names(job.run.variant) for other in left)
    ]:
        left += needed
    return [job for job in open_jobs if job in left]


def _part_of_array(left: Sequence[Job], jobs: Sequence[Job]) -> list[Job]:
    """Return the runs of this task of a Slurm job array: every task counts over all runs, so none is done twice."""
    found = [os.environ.get(name, "") for name in _ARRAY]
    if not all(word.isdigit() for word in found):
        raise ValueError(
            f"executor: found no job array ({_ARRAY[0]} is not set); start it with sbatch --array, or "
            "leave out --executor"
        )
    task, count = int(found[0]), max(1, int(found[1]))
    return [job for job in jobs[task % count :: count] if job in left]


def _line(result: RunResult, seconds: float) -> str:
    name = f"{result.variant}, seed {result.seed}"
    if result.error is not None:
        return f"{name}: {result.error}"
    return f"{name}: {result.bits_per_byte:.4f} bits per byte, {duration(seconds)}"
