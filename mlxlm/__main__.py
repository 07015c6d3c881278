"""The command `mlxlm`: `mlxlm NAME --help` shows the settings of each of its commands."""

import sys

from jaxlm.common.command_line import choose_command
from mlxlm import __version__

COMMANDS = {
    "generate": ("mlxlm.generate:main", "text from a model"),
    "chat": ("mlxlm.chat.command:main", "a conversation in the terminal"),
    "finetune": ("mlxlm.finetune.command:main", "train adapters or latent weights on text or chats"),
    "merge": ("mlxlm.merge:main", "add adapters to the weights of their model"),
    "evaluate": ("mlxlm.evaluate:main", "loss, perplexity and bits per byte of models on the same text"),
    "server": ("mlxlm.server.command:main", "a model behind OpenAI's HTTP API"),
}


def main() -> None:
    """Run the command that the first word names."""
    names = ("train", "prepare", "tokenizer", "convert", "verify", "new-model", "doctor", "presets", "runs")
    elsewhere = {name: f"jaxlm {name}" for name in names}
    choose_command("mlxlm", COMMANDS, sys.argv[1:], version=__version__, elsewhere=elsewhere)


if __name__ == "__main__":
    main()
