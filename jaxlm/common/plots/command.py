"""The command `jaxlm plot`: the curves of runs in one picture."""

import os
from dataclasses import dataclass
from pathlib import Path

from jaxlm.common.command_line import make_console
from jaxlm.common.plots.curves import draw_runs
from jaxlm.common.run.metrics_log import read_metrics
from jaxlm.common.run.run_directory import RunDirectory
from shared_tokenizer.settings import setting


@dataclass(frozen=True, kw_only=True)
class PlotConfig:
    """The runs and the picture."""

    run: list[str] = setting(by_position=True)
    """Run directories, each a colour; the name of the flag may be left out."""
    out: str
    """Picture to write, PNG or SVG by its ending."""


def main(config: PlotConfig) -> None:
    """Draw losses, held-out losses and the shares of zeros and flips of runs, laid over each other."""
    paths = [Path(run) for run in config.run]
    lines = [read_metrics(RunDirectory(path).metrics) for path in paths]
    for path, found in zip(paths, lines, strict=True):
        if not found:
            raise ValueError(f"{path}: found no line of metrics.jsonl, expected the directory of a run")
    common = os.path.commonpath([path.absolute().parent for path in paths])
    names = [os.path.relpath(path.absolute(), common) for path in paths]
    draw_runs(dict(zip(names, lines, strict=True)), Path(config.out))
    make_console().print(f"{len(names)} run(s) in {config.out}")
