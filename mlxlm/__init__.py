"""Run and fine-tune ternary language models with MLX."""

import sys

from jaxlm import __version__ as __version__
from jaxlm.common.command_line import quiet_libraries

if sys.argv[0] == "-m":  # `python -m mlxlm.NAME` imports this file before the command's own imports
    quiet_libraries()
