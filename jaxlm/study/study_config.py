"""The settings of the command `jaxlm study`."""

from dataclasses import dataclass
from typing import Literal

from jaxlm.common.tracker_names import check_trackers
from shared_tokenizer.settings import setting


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """The study, and where it is done."""

    study: str = setting(by_position=True)
    """YAML file of the study; the name of the flag may be left out."""
    output_dir: str | None = None
    """Folder of the run directories; by default runs/ and the name of the study."""
    results_dir: str | None = None
    """Folder for results.json, the table and the pictures; by default the study's file without its ending."""
    report_to: list[str] = setting(factory=list)
    """Trackers that get the runs too: tensorboard, wandb, trackio, or several of them."""
    executor: Literal["local", "ray", "slurm"] = "local"
    """local does one run after another here; ray one on each worker of a running Ray cluster; slurm those of this task
    of a job array, as sbatch --array starts it. Workers must see the same files."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "report_to", check_trackers(self.report_to))
