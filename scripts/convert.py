"""Convert a model into another form with a report, or compare two models: `convert.py verify FIRST SECOND`."""

import sys

from jaxlm.common.command_line import run_command

if __name__ == "__main__":
    if sys.argv[1:2] == ["verify"]:
        run_command("jaxlm.commands.convert:verify", argv=sys.argv[2:], positional=True)
    else:
        run_command("jaxlm.commands.convert:main", positional=True)
