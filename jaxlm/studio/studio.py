"""The studio without its pages: folders, runs, jobs, settings, servers, and the draft of the next run."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from jaxlm.studio.processes.job_process import write_json
from jaxlm.studio.processes.jobs import Job, Jobs
from jaxlm.studio.processes.model_server import ModelServers
from jaxlm.studio.processes.recipes import (
    FINETUNE,
    FIRST_SETTINGS,
    STDLIB,
    TextChoice,
    data_place,
    prepare_command,
    run_place,
    train_command,
)
from jaxlm.studio.processes.settings_check import SettingsCheck
from jaxlm.studio.reading.folders import RUNS, Folders, free_name
from jaxlm.studio.reading.metrics_tail import MetricsTail
from jaxlm.studio.reading.runs import Run, Runs, kill_run, stop_run
from jaxlm.studio.reading.text_pieces import OpenTokenizers

# Curves that are kept in memory, of the runs that were looked at last.
_MOST_TAILS = 24


@dataclass
class Draft:
    """The next run as it is written in the form. Settings are words, as a person types them after a flag."""

    name: str = ""
    input: list[str] = field(default_factory=lambda: [STDLIB])
    hub: str = ""
    vocab_size: str = "4096"
    tokenizer: str = ""
    prepare: dict[str, str] = field(default_factory=dict)
    data_dir: list[str] = field(default_factory=list)
    """Token shards that are there already, in place of text and tokenizer."""
    command: str = "train"
    """`train`, or FINETUNE, which reads the text itself and has `model` among its settings."""
    train: dict[str, str] = field(default_factory=lambda: {name: str(value) for name, value in FIRST_SETTINGS.items()})

    @property
    def text_choice(self) -> TextChoice:
        """The text and the tokenizer of the run. Raises ValueError on a vocabulary that is no number."""
        if not self.tokenizer and not self.vocab_size.replace("_", "").isdigit():
            raise ValueError(f"vocab_size: found {self.vocab_size!r}, expected a whole number")
        settings = tuple(sorted((name, value) for name, value in self.prepare.items() if value != ""))
        size = None if self.tokenizer else int(self.vocab_size)
        return TextChoice(tuple(self.input), self.hub, size, self.tokenizer, settings)


class Studio:
    """Everything that the pages show and start. Files are the truth: nothing is known only here."""

    def __init__(self, folders: Folders, cwd: Path):
        self.folders, self.cwd = folders, cwd
        self.jobs = Jobs(folders.state / "jobs")
        self.runs = Runs(folders)
        self.settings = SettingsCheck()
        self.servers = ModelServers(self.jobs, folders.state, cwd)
        self.tokenizers = OpenTokenizers()
        self._tails: dict[Path, MetricsTail] = {}

    def _draft_file(self, command: str) -> Path:
        return self.folders.state / ("finetune.json" if command == FINETUNE else "draft.json")

    def draft(self, command: str = "train") -> Draft:
        """Return the draft of the next run of a command; a new one where there is none that can be read."""
        try:
            content = json.loads(self._draft_file(command).read_text("utf-8"))
            known = {each.name for each in fields(Draft)} - {"command"}
            return Draft(command=command, **{name: value for name, value in content.items() if name in known})
        except (OSError, ValueError, TypeError, AttributeError):
            return Draft(command=command, input=[], train={}) if command == FINETUNE else Draft()

    def keep(self, draft: Draft) -> None:
        """Write the draft, so that a page that is loaded anew goes on with it."""
        self.folders.state.mkdir(exist_ok=True)
        write_json(self._draft_file(draft.command), asdict(draft))

    @property
    def dark(self) -> bool | None:
        """True for dark pages, False for light ones, None as the browser has it."""
        try:
            found = json.loads((self.folders.state / "look.json").read_text("utf-8"))["dark"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return found if isinstance(found, bool) else None

    @dark.setter
    def dark(self, value: bool | None) -> None:
        self.folders.state.mkdir(exist_ok=True)
        write_json(self.folders.state / "look.json", {"dark": value})

    def next_name(self, draft: Draft) -> str:
        """Return the name of the next run: that of the draft, or a free one."""
        return draft.name or free_name(self.folders.root / RUNS, "tuned" if draft.command == FINETUNE else "first")

    def commands(self, draft: Draft) -> tuple[Path, list[Any]]:
        """Return the run directory of a draft and the commands that make it.

        Raises ValueError on a name that is taken or a path that is not allowed.
        """
        output = run_place(self.next_name(draft), self.folders)
        if draft.command == FINETUNE:
            if not draft.input:
                raise ValueError("data: nothing is chosen, expected a text or chats; choose a folder or a file")
            data = [self.folders.resolve(name) for name in draft.input]
            return output, [train_command(draft.train, data, output, self.folders, draft.command)]
        if draft.data_dir:
            data = [self.folders.resolve(self.cwd / name) for name in draft.data_dir]
            return output, [train_command(draft.train, data, output, self.folders)]
        choice = draft.text_choice
        data = data_place(choice, self.folders)
        return output, [
            prepare_command(choice, self.folders),
            train_command(draft.train, [data], output, self.folders),
        ]

    def start(self, draft: Draft) -> Job:
        """Start the run of a draft. Raises ValueError as `commands` does."""
        output, commands = self.commands(draft)
        output.parent.mkdir(parents=True, exist_ok=True)
        return self.jobs.start("train", output.name, output, commands, cwd=self.cwd)

    def close(self) -> None:
        """End what belongs to this process alone: the servers of models and the check of settings."""
        self.servers.close()
        self.settings.close()

    def tail(self, run: Path) -> MetricsTail:
        """Return the curves of a run, read up to now."""
        tail = self._tails.pop(run, None) or MetricsTail(run / "metrics.jsonl")
        self._tails[run] = tail
        while len(self._tails) > _MOST_TAILS:
            del self._tails[next(iter(self._tails))]
        tail.refresh()
        return tail

    def job_of(self, run: Path) -> Job | None:
        """Return the newest job that trains a run, None where it was started elsewhere."""
        return next((job for job in self.jobs.of(run) if job.record["kind"] == "train"), None)

    def stop(self, run: Path) -> None:
        """Ask a run to save and leave. Raises ValueError where none is at work."""
        self._end(run, Job.stop, stop_run)

    def kill(self, run: Path) -> None:
        """End a run at once. Raises ValueError where none is at work."""
        self._end(run, Job.kill, kill_run)

    def _end(self, path: Path, end_job: Callable[[Job], None], end_run: Callable[[Run], None]) -> None:
        job = self.job_of(path)
        if job is not None and job.state == "running":
            end_job(job)
        else:
            end_run(self.runs.get(str(path)))
