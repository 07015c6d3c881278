"""Keep the memory of one training step for the next one, on Linux.

XLA for CPUs asks for the temporaries of a step anew each time. glibc gives blocks of that size back to the system,
which has to clear every page again: a tenth of the time of a small step (scripts/benchmark.py train).
"""

import ctypes
import platform

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed; True where it does, False where another library allocates.

    Call it before threads allocate: they have heaps of their own otherwise, which cannot hold a step's temporaries.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(*setting) for setting in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_ARENA_MAX, 1)))
