"""The memory that training needs of a device, against the free memory: refused before it is allocated."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from jaxlm.parallel.sharding import HOST_MEMORY

GIB = 2**30
MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class Memory:
    """The bytes of one device's memory that a compiled step needs."""

    arguments: int
    """State and batch."""
    temporaries: int
    """Activations, gradients, gathered weights."""
    unaliased: int
    """Outputs that do not reuse the memory of an argument."""

    @property
    def total(self) -> int:
        return self.arguments + self.temporaries + self.unaliased


def compiled_memory(compiled: jax.stages.Compiled) -> Memory:
    """Return the bytes that a compiled program needs of one device, by the compiler's own account."""
    found: Any = compiled.memory_analysis()
    unaliased = found.output_size_in_bytes - found.alias_size_in_bytes
    return Memory(found.argument_size_in_bytes, found.temp_size_in_bytes, unaliased)


def bytes_per_device(tree: Any) -> int:
    """Return the bytes that one device holds of arrays, or of shapes with shardings, without those of the host."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf.sharding.memory_kind != HOST_MEMORY]
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def check_state_fits(state: Any, device: Any) -> None:
    """Raise ValueError where a state of these shapes with shardings does not fit into a device's free memory."""
    needed, free = bytes_per_device(state), free_bytes(device)
    if free is not None and needed > free:
        raise ValueError(
            f"memory: parameters, optimizer state and codes need {needed / GIB:.2f} GiB on each device, found "
            f"{free / GIB:.2f} GiB free; choose a smaller preset, or split them with --mesh.fsdp"
        )


def check_extras_fit(extras: Any, device: Any) -> None:
    """Raise ValueError where the extras of an objective, shapes with shardings, do not fit into the free memory."""
    needed, free = bytes_per_device(extras), free_bytes(device)
    if free is not None and needed > free:
        raise ValueError(
            f"memory: {' and '.join(extras)} need {needed / GIB:.2f} GiB on each device next to the state, found "
            f"{free / GIB:.2f} GiB free; take a smaller one, or split it with --mesh.fsdp"
        )


def check_step_fits(
    compiled: jax.stages.Compiled, batch_size: int, data_parallel_size: int, grad_accumulation_steps: int, device: Any
) -> None:
    """Raise ValueError, naming a batch that would fit, where a step's activations do not fit next to the state.

    `data_parallel_size` is the number of devices that share the batch. Nothing is allocated: the compiler has planned
    every buffer.
    """
    needed, free = compiled_memory(compiled).temporaries, free_bytes(device)
    if free is None or needed <= free:
        return
    # Activations grow with the micro-batch. Other temporaries are counted with them, so the batch that is named fits.
    parts = data_parallel_size * grad_accumulation_steps
    rows = int(batch_size / parts * free / needed)
    remedy = "set --remat blocks, a shorter seq_len, or a larger --mesh.fsdp or --mesh.sequence"
    if rows:
        remedy = f"batch_size {rows * parts} would fit, and batch_size auto splits it; or set --remat blocks"
    raise ValueError(
        f"memory: a step with batch_size {batch_size} needs {needed / GIB:.2f} GiB on each device next to the state, "
        f"found {free / GIB:.2f} GiB free; {remedy}"
    )


def free_bytes(device: Any) -> int | None:
    """Return the free bytes of a device; None where it does not report them. Simulated CPU devices share its memory."""
    if device.platform == "cpu":
        return _free_host_bytes() // jax.local_device_count()
    stats = device.memory_stats() or {}
    return stats["bytes_limit"] - stats["bytes_in_use"] if "bytes_limit" in stats else None


def _free_host_bytes() -> int:
    if MEMINFO.is_file():
        fields = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
