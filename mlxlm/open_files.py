"""Importing mlx-lm where few files may be open: it raises the limit on import, and fails where that is not allowed."""

import importlib
import resource
import sys

# The limits that mlx_lm.utils sets.
WANTED = 4096


def import_with_few_files() -> None:
    """Import mlx_lm.utils with the limit as it is, where the hard limit is below the one that it sets."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY or hard >= WANTED or "mlx_lm.utils" in sys.modules:
        return
    sys.stderr.write(
        f"open files: found a limit of {hard}, expected {WANTED} (ulimit -Hn), which mlx-lm sets; going on with it\n"
    )
    raise_limit, resource.setrlimit = resource.setrlimit, lambda *limits: None
    try:
        importlib.import_module("mlx_lm.utils")
    finally:
        resource.setrlimit = raise_limit
