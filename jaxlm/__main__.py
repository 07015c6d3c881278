"""The command `jaxlm`: `jaxlm NAME --help` shows what each of its commands takes."""

import sys

from jaxlm import __version__
from jaxlm.common.command_line import choose_command
from jaxlm.common.shelf.command_names import COMMANDS as SHELF
from jaxlm.common.shelf.command_names import POSITIONAL as SHELF_POSITIONAL

COMMANDS = {
    "tokenizer": ("jaxlm.commands.tokenizer:main", "text -> tokenizer"),
    "prepare": ("jaxlm.commands.prepare:main", "text or chats -> token shards, training a tokenizer first if needed"),
    "presets": ("jaxlm.commands.presets:main", "list the models that can be trained, with their sizes"),
    "new-model": ("jaxlm.commands.new_model:main", "a model of a wanted size: bytes, memory, flags"),
    "train": ("jaxlm.commands.train:main", "token shards -> model; --resume continues a run"),
    "train-rl": ("jaxlm.rl.command:main", "a model and rewards for its answers -> model"),
    "store-teacher": ("jaxlm.training.store_teacher:main", "a teacher's likeliest tokens, which runs learn from"),
    "write-task": ("jaxlm.commands.write_task:main", "a task that train-rl has -> texts to pre-train on, prompts"),
    "runs": ("jaxlm.commands.runs:main", "list runs with their state and loss"),
    "plot": ("jaxlm.common.plots.command:main", "curves of runs in one picture: losses, zeros, flips"),
    "report": ("jaxlm.common.trackers.command:main", "send a run to TensorBoard, Weights & Biases or Trackio"),
    "study": ("jaxlm.study.command:main", "training runs that answer a question, compared with intervals"),
    "generate": ("jaxlm.commands.generate:main", "text from a model"),
    "evaluate": ("jaxlm.commands.evaluate:main", "loss, perplexity and bits per byte of models on the same text"),
    "server": ("jaxlm.server.command:main", "a model behind OpenAI's HTTP API, from JAX"),
    "inspect": ("jaxlm.commands.inspect:main", "what a model is: ternary or not, the forms that fit it, the memory"),
    "convert": ("jaxlm.commands.convert:main", "a model -> another form of it, compared with its source"),
    "verify": ("jaxlm.commands.convert:verify", "compare two models, in any forms"),
    **{f"models {name}": command for name, command in SHELF.items()},
    "studio": ("jaxlm.studio.command:main", "all of this in a browser: text, training, curves, talk"),
    "demo": ("jaxlm.studio.demo_command:main", "one model to talk to in a browser, for others; --export for the hub"),
    "doctor": ("jaxlm.commands.doctor:main", "what this machine can do, and whether it computes right"),
}
# Their settings without a default are given by position.
POSITIONAL = ("inspect", "convert", "verify", *(f"models {name}" for name in SHELF_POSITIONAL))


def main() -> None:
    """Run the command that the first word names."""
    elsewhere = {name: f"mlxlm {name}" for name in ("finetune", "chat", "merge")}
    choose_command("jaxlm", COMMANDS, sys.argv[1:], positional=POSITIONAL, version=__version__, elsewhere=elsewhere)


if __name__ == "__main__":
    main()
