"""A model by its size: what it would be, weigh and need, and a blank artifact of it."""

from jaxlm.common.command_line import run_command

if __name__ == "__main__":
    run_command("jaxlm.commands.new_model:main")
