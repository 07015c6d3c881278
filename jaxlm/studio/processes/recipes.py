"""The commands that the studio starts, with their words: prepare, train, fine-tune, continue, convert, evaluate."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxlm.studio.processes.jobs import Command
from jaxlm.studio.processes.settings_check import is_path, to_words
from jaxlm.studio.reading.folders import DATA, MODELS, RUNS, Folders, plain_name
from jaxlm.studio.reading.runs import Run

STDLIB = "stdlib"
FINETUNE = "mlx-finetune"
# Settings of the first training that a person starts: some minutes on two processor cores, a sample and a checkpoint
# early enough to talk to.
FIRST_SETTINGS: Mapping[str, Any] = {
    "preset": "ternary-tiny",
    "num_train_steps": 1200,
    "batch_size": 4,
    "seq_len": 128,
    "eval_every_steps": 100,
    "eval_batches": 20,
    "sample_every_steps": 100,
    "sample_tokens": 96,
    "checkpoint_every_steps": 100,
    "optimizer.learning_rate": 0.004,
    "optimizer.warmup_steps": 50,
    "optimizer.b2": 0.99,
    "optimizer.final_fraction": 0.0,
}
DOZEN = (
    "num_train_steps",
    "batch_size",
    "seq_len",
    "optimizer.learning_rate",
    "optimizer.warmup_steps",
    "objective",
    "init_from",
    "eval_every_steps",
    "sample_every_steps",
    "checkpoint_every_steps",
    "sample_prompt",
    "seed",
)


@dataclass(frozen=True)
class TextChoice:
    """The text of a run: files or a dataset of the hub, and how it is cut into tokens."""

    input: tuple[str, ...] = (STDLIB,)
    hub: str = ""
    vocab_size: int | None = 4096
    tokenizer: str = ""
    settings: tuple[tuple[str, Any], ...] = ()
    """Further settings of `prepare` by name, such as document_characters and dedup."""


def data_place(choice: TextChoice, folders: Folders) -> Path:
    """Return the directory of the token shards of a choice: another choice has another one."""
    first = choice.hub or Path(choice.input[0]).stem
    content = json.dumps([choice.input, choice.hub, choice.vocab_size, choice.tokenizer, choice.settings])
    digest = hashlib.sha256(content.encode()).hexdigest()[:6]
    return folders.root / DATA / f"{plain_name(first)}-{digest}"


def prepare_command(choice: TextChoice, folders: Folders) -> Command:
    """Return the command that turns a choice into token shards. Raises ValueError on a path that is not allowed."""
    words: dict[str, Any] = {}
    if choice.hub:
        words["hub"] = choice.hub
    else:
        words["input"] = [name if name == STDLIB else near(folders.resolve(name)) for name in choice.input]
    if choice.tokenizer:
        words["tokenizer"] = near(folders.resolve(choice.tokenizer))
    else:
        words["vocab_size"] = choice.vocab_size
    words |= dict(choice.settings)
    return Command("prepare", (*to_words(words), "--output_dir", near(data_place(choice, folders))))


def train_command(
    settings: Mapping[str, Any], data: Sequence[Path], output: Path, folders: Folders, name: str = "train"
) -> Command:
    """Return the command that trains. Raises ValueError on a path that is not allowed."""
    words = {setting: _checked(setting, value, folders) for setting, value in settings.items()}
    places = {"data" if name == FINETUNE else "data_dir": [near(path) for path in data]}
    return Command(name, tuple(to_words(words | places | {"output_dir": near(output)})))


def resume_command(run: Run, settings: Mapping[str, Any], folders: Folders) -> Command:
    """Return the command that continues a run, with resumable settings anew."""
    words = {setting: _checked(setting, value, folders) for setting, value in settings.items()}
    return Command(trainer_of(run), ("--resume", "--output_dir", near(run.path), *to_words(words)))


def convert_command(source: Path, model: Path, form: str) -> Command:
    """Return the command that converts a run or a model into a form."""
    return Command("convert", (near(source), near(model), "--to", form))


def evaluate_command(models: Sequence[Path], texts: Sequence[str], folders: Folders, report: Path) -> Command:
    """Return the command that evaluates models on the same text. Raises ValueError on a path that is not allowed."""
    names = [name if name == STDLIB else near(folders.resolve(name)) for name in texts]
    words = ("--model", *map(near, models), "--input", *names, "--json", near(report))
    return Command("evaluate", words)


def model_place(name: str, form: str, folders: Folders) -> Path:
    """Return the place of a new model of a form. Raises ValueError on a name that is none, or is taken."""
    return folders.new(MODELS, f"{name}.gguf" if form == "gguf" else name)


def run_place(name: str, folders: Folders) -> Path:
    """Return the place of a new run. Raises ValueError on a name that is none, or is taken."""
    return folders.new(RUNS, name)


def near(path: Path) -> str:
    """Return a path as it is shorter: from the working directory on, or whole."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") or len(relative) > len(str(path)) else relative


def trainer_of(run: Run) -> str:
    """Return the command that trains a run."""
    return "train" if run.kind == "train" else FINETUNE


def _checked(setting: str, value: Any, folders: Folders) -> Any:
    """Return the value of a setting; a path has to be allowed."""
    if not is_path(setting) or not value:
        return value
    try:
        if isinstance(value, list):
            return [near(folders.resolve(each)) for each in value]
        return near(folders.resolve(str(value)))
    except ValueError as error:
        raise ValueError(f"{setting}: {error}") from error
