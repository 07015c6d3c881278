"""Train a tokenizer on text."""

from jaxlm.common.command_line import run_command

if __name__ == "__main__":
    run_command("jaxlm.commands.tokenizer:main")
