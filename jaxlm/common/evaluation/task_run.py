"""The settings of tasks, and tasks run on one model after another: our probes, and those of lm-evaluation-harness."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from jaxlm.common.evaluation.evaluated_model import EvaluatedModel
from jaxlm.common.evaluation.probes import SUITE, Probe, ProbeResult, make_probes, probe_table, run_probes
from jaxlm.common.evaluation.scoring import Track
from shared_tokenizer.chat.chat_format import ChatFormat
from shared_tokenizer.load import find_chat_format
from shared_tokenizer.manifest import write_file
from shared_tokenizer.settings import setting
from shared_tokenizer.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """Tasks to evaluate models on."""

    tasks: list[str] = setting(factory=list, group="tasks")
    """Tasks, separated by commas: probes, our suite of small questions, which
    needs nothing, and tasks of lm-evaluation-harness by name."""
    task_dir: str | None = setting(None, group="tasks")
    """Folder with YAML files of tasks for lm-evaluation-harness."""
    limit: int | None = setting(None, group="tasks", at_least=1)
    """Rows of each task; by default all."""
    num_fewshot: int | None = setting(None, group="tasks", at_least=0)
    """Solved examples before each question; by default what the task says."""
    tasks_as_chats: bool = setting(False, group="tasks")
    """Write tasks of the harness as conversations in the model's chat format."""
    task_results: str | None = setting(None, group="tasks")
    """Folder for a JSON file of results per model, in the harness's own form."""

    def find_task_format(self, path: str, tokenizer: Tokenizer) -> ChatFormat | None:
        """Return the chat format of a model where tasks are conversations. Raises ValueError where it has none."""
        if not self.tasks_as_chats:
            return None
        found = find_chat_format(Path(path), tokenizer)
        if found is None:
            raise ValueError(f"{path}: found no chat template, expected one; leave tasks_as_chats out")
        return found

    def load_tasks(self) -> "TaskRun":
        """Return the tasks, with their data. Raises ValueError where one is unknown or its data cannot be read."""
        names = [name.strip() for word in self.tasks for name in word.split(",") if name.strip()]
        others = [name for name in names if name != SUITE]
        if others and self.task_dir is None and all(name.startswith("probe_") for name in others):
            raise ValueError(f"tasks: found {', '.join(others)}, expected {SUITE}, which runs all of them")
        harness_tasks = list[Any]()
        if others:
            try:
                from jaxlm.common.evaluation.harness import load_harness_tasks
            except ModuleNotFoundError as error:
                raise ValueError(
                    f"tasks: found {', '.join(others)}, which need lm-evaluation-harness ({error}); "
                    "pip install '.[eval]', or use --tasks probes"
                ) from error
            harness_tasks = load_harness_tasks(others, self.task_dir)
        return TaskRun(self, make_probes(self.limit) if SUITE in names else [], harness_tasks)


@dataclass
class TaskRun:
    """Tasks with their data, and the results of the models so far."""

    settings: TaskSettings
    probes: Sequence[Probe]
    harness_tasks: list[Any]
    probe_results: dict[str, list[ProbeResult]] = field(default_factory=dict)
    harness_results: dict[str, dict[str, Any]] = field(default_factory=dict)

    def run(self, model: EvaluatedModel, *, log: Callable[[str], None] = print, track: Track = iter) -> None:
        """Run all tasks on a model, and write its results where the settings ask for it."""
        written: dict[str, Any] = {}
        if self.probes:
            results = self.probe_results[model.name] = run_probes(model, self.probes, log=log, track=track)
            written["probes"] = {result.probe: result.as_json() for result in results}
        if self.harness_tasks:
            from jaxlm.common.evaluation.harness import run_harness_tasks

            settings = self.settings
            found = run_harness_tasks(
                model, self.harness_tasks, limit=settings.limit, num_fewshot=settings.num_fewshot, log=log, track=track
            )
            self.harness_results[model.name] = found
            written |= {name: value for name, value in found.items() if name != "samples"}
        if self.settings.task_results is not None and written:
            name = re.sub("[^A-Za-z0-9.-]+", "_", model.name).strip("_")
            path = _new_file(Path(self.settings.task_results), f"results_{name}")
            write_file(path, f"{json.dumps(written, indent=1, default=str)}\n".encode())
            log(f"results: {path}")

    def add_probes(self, models: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """Return what is known of each model, with its results in the probes where they were run."""
        found = {
            name: {"probes": {each.probe: each.as_json() for each in results}}
            for name, results in self.probe_results.items()
        }
        return {name: {**about, **found.get(name, {})} for name, about in models.items()}

    def tables(self) -> list[Any]:
        """Return a rich table of the probes of all models, and the harness's own table of each model."""
        tables: list[Any] = [probe_table(self.probes, self.probe_results)] if self.probe_results else []
        if self.harness_results:
            from lm_eval.utils import make_table

            for name, found in self.harness_results.items():
                tables += [name, make_table(found)]
                if found.get("groups"):
                    tables.append(make_table(found, "groups"))
        return tables


def _new_file(directory: Path, name: str) -> Path:
    """Return a JSON file that did not exist, now empty: of results of one name none takes the place of another."""
    directory.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        path = directory / (f"{name}.json" if number == 1 else f"{name}_{number}.json")
        try:
            path.open("x").close()
        except FileExistsError:
            continue
        return path
    raise RuntimeError("unreachable: count has no end")
