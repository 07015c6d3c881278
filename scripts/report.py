"""Send a run to trackers."""

from jaxlm.common.command_line import run_command

if __name__ == "__main__":
    run_command("jaxlm.common.trackers.command:main")
