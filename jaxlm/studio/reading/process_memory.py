"""Memory of a process of this machine."""

import subprocess
from pathlib import Path


def memory_bytes(pid: int) -> int | None:
    """Return the resident memory of a process, None where it is gone."""
    status = Path(f"/proc/{pid}/statm")
    try:
        if status.is_file():
            return int(status.read_text().split()[1]) * 4096
        found = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, timeout=2)
        return int(found.stdout) * 1024
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return None
