"""Show what this machine can do, and test that it computes right."""

from jaxlm.common.command_line import run_command

if __name__ == "__main__":
    run_command("jaxlm.commands.doctor:main")
