"""C++ source -> functions of jax, in a shared library in the user's cache.

It is built once per source with its headers, compiler, flags and processor.
"""

import ctypes
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax

from jaxlm.ops.machine.user_cache import cache_directory

COMPILERS = ("g++", "clang++", "c++")
FLAGS = ("-O3", "-std=c++17", "-march=native", "-shared", "-fPIC", "-w")
_TIMEOUT_S = 300
_MESSAGE_CHARACTERS = 300


class NoLibraryError(Exception):
    """There is no library; the text is the reason."""


def find_compiler() -> str | None:
    """Return the path of a C++ compiler: that of $CXX, else the first of COMPILERS; None where there is none."""
    given = os.environ.get("CXX")
    return next(filter(None, map(shutil.which, (given,) if given else COMPILERS)), None)


def build_library(source: Path, processor: Sequence[str], flags: Sequence[str] = FLAGS) -> Path:
    """Return the library of a source that uses XLA's FFI, built if it is not in the cache.

    `processor` names the features of this processor, for which it is built. Raises NoLibraryError where there is no
    compiler, where it fails, or where the cache cannot be written.
    """
    texts = [path.read_text() for path in (source, *sorted(source.parent.glob("*.h")))]
    key = "\0".join([*texts, *processor, *flags, importlib.metadata.version("jaxlib")])
    library = cache_directory() / f"{source.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    if library.is_file():
        return library
    if (compiler := find_compiler()) is None:
        raise NoLibraryError(f"no C++ compiler: found none of {', '.join(COMPILERS)}, nor $CXX")
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent, prefix="build-") as folder:
            built = Path(folder) / library.name
            command = [compiler, *flags, f"-I{jax.ffi.include_dir()}", str(source), "-o", str(built)]
            subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S, check=True)
            built.replace(library)  # in one step: other processes may build it too
    except subprocess.CalledProcessError as error:
        words = " ".join(error.stderr.split())[:_MESSAGE_CHARACTERS]
        raise NoLibraryError(f"{compiler} ended with code {error.returncode}: {words}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoLibraryError(f"{compiler}: {error}") from error
    return library


def make_known(path: Path, targets: Sequence[str]) -> ctypes.CDLL:
    """Load a library and make its `targets` known to `jax.ffi` on CPUs. Raises NoLibraryError."""
    try:
        library = ctypes.cdll.LoadLibrary(str(path))
        for name in targets:
            jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    except (OSError, AttributeError) as error:
        raise NoLibraryError(f"{path}: {error}") from error
    return library
