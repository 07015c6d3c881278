"""The demo: one model to talk to, for others."""

from jaxlm.common.command_line import run_command

if __name__ == "__main__":
    run_command("jaxlm.studio.demo_command:main")
