import platform
import resource
import subprocess
import sys

import pytest

from jaxlm.training.host_allocator import keep_freed_memory, release_freed_memory

PROGRAM = """
import resource
import numpy as np
from jaxlm.training.host_allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**24, np.float32)  # 64 MiB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
without = faults()
assert keep_freed_memory()
faults()
print(without, faults())
"""


RELEASE = """
from pathlib import Path
import numpy as np
from jaxlm.training.host_allocator import keep_freed_memory, release_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])

assert keep_freed_memory()
before = resident()
block = np.ones(2**24, np.float32)  # 64 MiB
above = [0] * 1000  # so that the block does not end the heap
del block
kept = resident() - before
release_freed_memory()
print(kept, resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another library allocates here")
def test_freed_memory_is_not_cleared_again():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    without, with_it = map(int, done.stdout.split())
    pages = 2**26 // resource.getpagesize()
    assert with_it < pages / 100 < without


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another library allocates here")
def test_freed_memory_is_given_back_when_asked_for():
    done = subprocess.run([sys.executable, "-c", RELEASE], capture_output=True, text=True, check=True)
    kept, left = map(int, done.stdout.split())
    pages = 2**26 // resource.getpagesize()
    assert left < pages / 10 < 0.9 * pages < kept


def test_another_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("musl", "1"))
    assert not keep_freed_memory()
    release_freed_memory()
