"""What a compiled program needs of a device's memory, and what the device has."""

import os
from pathlib import Path
from typing import Any

import jax

GIB = 2**30
MEMINFO = Path("/proc/meminfo")


def check_fits(compiled: jax.stages.Compiled, batch_size: int, ways: int, device: Any) -> None:
    """Raise ValueError, naming a batch that would fit, where a training step does not fit into a device's memory.

    `ways` is how many devices share the batch. Nothing is allocated: the compiler has planned every buffer.
    """
    analysis: Any = compiled.memory_analysis()
    state, activations = int(analysis.argument_size_in_bytes), int(analysis.temp_size_in_bytes)
    available = available_bytes(device)
    if available is None or state + activations <= available:
        return
    raise ValueError(
        f"memory: the training step needs {(state + activations) / GIB:.2f} GiB on each device ({state / GIB:.2f} for "
        f"the state and {activations / GIB:.2f} for a batch of {batch_size}), found {available / GIB:.2f} GiB; "
        + _way_out(state, activations, available, batch_size, ways)
    )


def _way_out(state: int, activations: int, available: int, batch_size: int, ways: int) -> str:
    """Activations grow with the batch; what does not is counted with them, so the batch named is on the safe side."""
    rows = int(batch_size / ways * max(0, available - state) / activations)
    if rows:
        return f"batch_size {rows * ways} would fit"
    if state < available:
        return "no batch would fit: set --remat blocks, a shorter seq_len or a smaller preset"
    return "no batch would fit: choose a smaller preset, or split the state with --mesh.fsdp"


def available_bytes(device: Any) -> int | None:
    """Memory that a device has to give, in bytes; None where it does not say."""
    if device.platform == "cpu":
        return _available_host_bytes()
    return (device.memory_stats() or {}).get("bytes_limit")


def _available_host_bytes() -> int:
    if MEMINFO.is_file():
        fields = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
