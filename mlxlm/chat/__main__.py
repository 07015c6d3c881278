"""`python -m mlxlm.chat`."""

from jaxlm.common.command_line import run_command

if __name__ == "__main__":
    run_command("mlxlm.chat.command:main")
