"""The studio: text, training, live curves and talk in a browser."""

from jaxlm.common.command_line import run_command

if __name__ == "__main__":
    run_command("jaxlm.studio.command:main")
