"""Generate text with JAX from a run directory or a model."""

from jaxlm.common.command_line import run_command

if __name__ == "__main__":
    run_command("jaxlm.commands.generate:main")
