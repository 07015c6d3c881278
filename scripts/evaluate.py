"""Loss, perplexity and bits per byte of models on the same text."""

from jaxlm.common.command_line import run_command

if __name__ == "__main__":
    run_command("jaxlm.commands.evaluate:main")
