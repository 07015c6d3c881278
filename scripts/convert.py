"""Convert a model into another form with a report; `convert.py verify FIRST SECOND` compares two models, and
`convert.py inspect SRC` shows what a model is."""

import sys

from jaxlm.common.command_line import run_command

OTHERS = {"verify": "jaxlm.commands.convert:verify", "inspect": "jaxlm.commands.inspect:main"}

if __name__ == "__main__":
    other = OTHERS.get(sys.argv[1]) if len(sys.argv) > 1 else None
    if other is not None:
        run_command(other, argv=sys.argv[2:], positional=True)
    else:
        run_command("jaxlm.commands.convert:main", positional=True)
