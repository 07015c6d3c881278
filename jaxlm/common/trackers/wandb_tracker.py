"""Weights & Biases: online where an API key is at hand, else offline files in the run directory for `wandb sync`."""

import netrc
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import wandb  # pyright: ignore[reportMissingImports]

from jaxlm.common.trackers.tracker import TrackedRun
from shared_tokenizer.manifest import write_file

_ID = "run-id"
_DEFAULT_HOST = "https://api.wandb.ai"


class WeightsAndBiases:
    """A run of W&B.

    Offline it is written anew whenever the run is opened, as files that were cut short by a kill lack their last steps.
    Online it goes on after the steps that the server has. No step can be taken back there, so where a kill did so, or
    the offline files have been synced already, a new W&B run begins and holds everything; the one before stays.
    """

    def __init__(self, run: TrackedRun):
        self._place = run.directory
        self._place.mkdir(exist_ok=True)
        mode = _mode()
        is_synced = self._remove_offline_files() if mode == "offline" else False
        self._run = self._init(run, mode, self._run_id(anew=is_synced))
        if self._run.starting_step - 1 > run.first_step:
            self._run.finish()
            self._run = self._init(run, mode, self._run_id(anew=True))
        self.sent = max(self._run.starting_step - 1, 0)

    def _run_id(self, *, anew: bool) -> str:
        path = self._place / _ID
        found = path.read_text("utf-8").strip() if path.is_file() else ""
        if anew or not found.isalnum():
            found = uuid.uuid4().hex[:12]
            write_file(path, f"{found}\n".encode())
        return found

    def _remove_offline_files(self) -> bool:
        """Remove files of earlier starts that nobody has synced, and return True if some were."""
        is_synced = False
        for folder in self._place.glob("offline-run-*"):
            if any(folder.glob("*.synced")):
                is_synced = True
            elif not folder.is_symlink():
                shutil.rmtree(folder)
        return is_synced

    def _init(self, run: TrackedRun, mode: Literal["online", "offline"], run_id: str) -> Any:
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "jaxlm",
            id=run_id,
            name=run.name,
            group=run.group,
            config=dict(run.config),
            dir=str(run.directory.parent),  # where W&B makes a folder of the name wandb
            mode=mode,
            reinit="create_new",
            resume="allow" if mode == "online" else None,
            # W&B copies no code and no output, and measures no machine: the run directory has what is told of it.
            settings=wandb.Settings(
                console="off", silent=True, save_code=False, disable_git=True, x_disable_stats=True
            ),
        )

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        self._log(step, dict(values))

    def text(self, step: int, name: str, text: str) -> None:
        self._log(step, {name: text})

    def picture(self, step: int, name: str, path: Path) -> None:
        self._log(step, {name: wandb.Image(str(path))})

    def _log(self, step: int, values: dict[str, Any]) -> None:
        # The server refuses a step that it has closed: what belongs to the end of such a run comes after it.
        self._run.log(values, step=max(step, self.sent + 1))

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=1 if failed else 0)


def open_tracker(run: TrackedRun) -> WeightsAndBiases:
    """Return the record of a run in W&B."""
    return WeightsAndBiases(run)


def _mode() -> Literal["online", "offline"]:
    """Return the mode that WANDB_MODE names; without it online if there is a key, which W&B would else ask for."""
    if given := os.environ.get("WANDB_MODE"):
        return "online" if given == "online" else "offline"
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or _DEFAULT_HOST).hostname or ""
    try:
        has_key = netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        has_key = False
    return "online" if has_key or os.environ.get("WANDB_API_KEY") else "offline"
