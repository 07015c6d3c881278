"""Train a model by rewards, or resume such a run."""

from jaxlm.common.command_line import run_command

if __name__ == "__main__":
    run_command("jaxlm.rl.command:main")
