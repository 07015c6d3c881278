"""What this machine can do, and whether it computes right."""

from jaxlm.common.command_line import run_command

if __name__ == "__main__":
    run_command("jaxlm.commands.doctor:main")
