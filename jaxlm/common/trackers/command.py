"""The command `jaxlm report`: a run that was trained without a tracker, sent to one."""

from dataclasses import dataclass
from pathlib import Path

from jaxlm.common.command_line import make_console
from jaxlm.common.run.metrics_log import read_metrics
from jaxlm.common.run.run_directory import LOCK, RunDirectory, settings_file_of
from jaxlm.common.tracker_names import TRACKERS, check_trackers
from jaxlm.common.trackers.trackers import open_trackers
from shared_tokenizer.locks import LockedError, locked_file
from shared_tokenizer.settings import setting


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """The run, and where it is sent."""

    run: str = setting(by_position=True)
    """Run directory; the name of the flag may be left out."""
    to: list[str] = setting(factory=list)
    """Trackers: tensorboard, wandb, trackio, or several of them."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "to", check_trackers(self.to, "to"))
        if not self.to:
            raise ValueError(f"to: found none, expected some of {', '.join(TRACKERS)}")


def main(config: ReportConfig) -> None:
    """Send the settings, metrics, samples, pictures and manifest of a run to trackers, whatever they had of it."""
    console, run = make_console(), RunDirectory(Path(config.run))
    settings_file = settings_file_of(run.path)
    if not read_metrics(run.metrics):
        raise ValueError(f"{run.metrics}: found no line, expected the metrics of a run")
    try:
        with (
            locked_file(run.path / LOCK),
            open_trackers(config.to, run, settings_file, lambda line: console.print(line)) as trackers,
        ):
            trackers.begin()
    except LockedError as error:
        raise ValueError(
            f"{run.path}: a trainer is at work here; wait for it, or stop it and resume it with --report_to "
            f"{','.join(config.to)}"
        ) from error
    if trackers.failed:
        raise ValueError(f"{run.path}: not sent to every one of {', '.join(config.to)}; the note above says why")
    console.print(f"{run.path}: sent to {', '.join(config.to)}")
