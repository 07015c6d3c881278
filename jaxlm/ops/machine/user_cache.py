"""The user's cache of this project: libraries, measured times and compiled programs of this machine."""

import hashlib
import os
import platform
import warnings
from pathlib import Path

import jax

from jaxlm.ops.machine.cpu import CPU_INFO

_PROGRAMS_BYTES = 2**30
# Programs that compile faster than this are not kept.
_SHORTEST_COMPILE_S = 0.1


def cache_directory() -> Path:
    """Return the directory of the cache: `jaxlm` in $XDG_CACHE_HOME or `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxlm"


def processor_key() -> str:
    """Return a short name of this processor's instructions: programs of another one may not run here."""
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.exists() else []
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return hashlib.sha256(f"{platform.machine()} {platform.processor()} {flags}".encode()).hexdigest()[:16]


def keep_programs(directory: str | None = None) -> None:
    """Keep compiled programs for the next start in a directory, by default in the user's cache, of 1 GiB at most.

    Nothing is changed where JAX was given a directory of its own ($JAX_COMPILATION_CACHE_DIR), or the default one
    cannot be written. JAX_ENABLE_COMPILATION_CACHE=false keeps none.
    """
    if directory is None:
        if jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue]
            return
        folder = cache_directory() / "programs" / processor_key()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return
        directory = str(folder)
        jax.config.update("jax_compilation_cache_max_size", _PROGRAMS_BYTES)
    jax.config.update("jax_compilation_cache_dir", directory)
    # So it is with every step that has oneDNN's products.
    warnings.filterwarnings("ignore", "Error writing persistent compilation cache .*onednn")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _SHORTEST_COMPILE_S)
