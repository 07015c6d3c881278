"""Run and fine-tune ternary language models with MLX."""

import sys

from jaxlm import __version__ as __version__
from jaxlm.common.command_line import quiet_libraries
from mlxlm.open_files import import_with_few_files

if sys.argv[0] == "-m":  # `python -m mlxlm.NAME` imports this file before the command's own imports
    quiet_libraries()
import_with_few_files()
