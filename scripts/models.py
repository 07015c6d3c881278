"""The shelf of models."""

import sys

from jaxlm import __version__
from jaxlm.common.command_line import choose_command
from jaxlm.common.shelf.command_names import COMMANDS, POSITIONAL

if __name__ == "__main__":
    choose_command("models.py", COMMANDS, sys.argv[1:], positional=POSITIONAL, version=__version__)
