"""The memory of a training step on a CPU: freed memory is kept for the next step.

XLA for CPUs allocates the temporaries of every step anew. glibc returns blocks of that size to the system, which has to
clear every page again: a tenth of the time of a small step (scripts/benchmark.py train).
"""

import ctypes
import platform

import jax

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory. Returns True where it does, False where another library allocates.

    Call it before jax uses the CPU, and before threads allocate: they have heaps of their own otherwise, which cannot
    hold a step's temporaries.
    """
    # A step that is started before the last has ended would have temporaries of its own.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if not _is_glibc():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(*setting) for setting in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_ARENA_MAX, 1)))


def release_freed_memory() -> None:
    """Return free memory to the system.

    Call it after compiling, which needs much memory once, and after the first step: what that leaves behind lies among
    its temporaries, so those of the next step have to lie elsewhere.
    """
    if _is_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def _is_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"
