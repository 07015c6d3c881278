"""The command `jaxlm write-task`: a task that is built in, as files."""

import json
from dataclasses import dataclass
from pathlib import Path

from jaxlm.common.rewards.built_in import TASKS
from jaxlm.common.rewards.open_task import TaskSettings, open_task
from shared_tokenizer.manifest import write_file
from shared_tokenizer.settings import setting


@dataclass(frozen=True, kw_only=True)
class WriteTaskConfig:
    """A task and a folder."""

    task: str = setting(basic=True, more_help=f" One of {', '.join(TASKS)}.")
    """Task that is built in."""
    num_held_out: int = setting(TaskSettings.num_held_out, at_least=1)
    """Prompts that are held out, as train-rl holds them out."""
    output_dir: str = setting(basic=True)
    """Folder for texts.jsonl (prompts with their answers, to pre-train on), prompts.jsonl and held_out.jsonl."""


def main(config: WriteTaskConfig) -> None:
    """Write the rows of a task: texts to pre-train a model on, and prompts to change and to give to train-rl. Held-out
    prompts are in none of the texts."""
    task = open_task(TaskSettings(task=config.task, num_held_out=config.num_held_out))
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    texts = [{"text": row["prompt"] + row["answer"]} for row in task.train]
    for name, rows in (("texts", texts), ("prompts", task.train), ("held_out", task.held_out)):
        path = folder / f"{name}.jsonl"
        write_file(path, "".join(json.dumps(dict(row)) + "\n" for row in rows).encode())
        print(f"{path}: {len(rows):,} rows")
