"""Draw the curves of runs."""

from jaxlm.common.command_line import run_command

if __name__ == "__main__":
    run_command("jaxlm.common.plots.command:main")
