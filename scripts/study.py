"""Do the training runs of a study and compare them."""

from jaxlm.common.command_line import run_command

if __name__ == "__main__":
    run_command("jaxlm.study.command:main")
