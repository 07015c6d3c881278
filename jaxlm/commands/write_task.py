"""The command `jaxlm write-task`: a task that is built in, as files."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxlm.common.rewards.built_in import TASKS
from jaxlm.common.rewards.games import GAMES, HELD_OUT, played_by_chance
from jaxlm.common.rewards.open_task import TaskSettings, open_task
from jaxlm.common.rewards.task import Row
from shared_tokenizer.manifest import write_file
from shared_tokenizer.settings import check_unchanged, setting

# Games whose moves are written.
GAMES_BY_CHANCE = 4000


@dataclass(frozen=True, kw_only=True)
class WriteTaskConfig:
    """A task and a folder."""

    task: str = setting(basic=True, more_help=f" One of {', '.join((*TASKS, *GAMES))}.")
    """Task that is built in, or a game."""
    num_held_out: int = setting(TaskSettings.num_held_out, at_least=1)
    """Prompts that are held out, as train-rl holds them out."""
    output_dir: str = setting(basic=True)
    """Folder for texts.jsonl (prompts with their answers, to pre-train on), prompts.jsonl and held_out.jsonl; of a game
    for texts.jsonl alone, moves of games that are played by chance."""

    def __post_init__(self) -> None:
        if self.task in GAMES:
            check_unchanged(self, ("num_held_out",), f"with the game {self.task}")


def main(config: WriteTaskConfig) -> None:
    """Write the rows of a task: texts to pre-train a model on, and prompts to change and to give to train-rl. Held-out
    prompts are in none of the texts."""
    folder = Path(config.output_dir)
    if config.task in GAMES:
        numbers = range(HELD_OUT, HELD_OUT + GAMES_BY_CHANCE)
        moves = [move for number in numbers for move in played_by_chance(GAMES[config.task], number)]
        _write(folder, {"texts": [{"text": prompt + answer} for prompt, answer in moves]})
        return
    task = open_task(TaskSettings(task=config.task, num_held_out=config.num_held_out))
    texts = [{"text": row["prompt"] + row["answer"]} for row in task.train]
    _write(folder, {"texts": texts, "prompts": task.train, "held_out": task.held_out})


def _write(folder: Path, files: Mapping[str, Sequence[Row]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        path = folder / f"{name}.jsonl"
        write_file(path, "".join(json.dumps(dict(row)) + "\n" for row in rows).encode())
        print(f"{path}: {len(rows):,} rows")
