"""Limits of a process that runs a program from elsewhere. It needs the standard library alone."""

import contextlib
import resource


def limit_process(memory_bytes: int) -> None:
    """Forbid this process to open files, write files, start processes and use more memory.

    Systems that lack a limit, as macOS lacks that on memory, leave it out.
    """
    limits = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_DATA: memory_bytes,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: 0,
        resource.RLIMIT_NPROC: 0,
    }
    for kind, most in limits.items():
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (most, most))
