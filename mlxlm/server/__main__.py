"""`python -m mlxlm.server`."""

from jaxlm.common.command_line import run_command

if __name__ == "__main__":
    run_command("mlxlm.server.command:main")
