"""Flags that keep XLA for CPUs from computing wrong numbers, and from computing the right ones slowly.

Set before XLA reads its environment.

On CPUs, jaxlib 0.10.2 to 0.12.0.1 fuse reductions with what comes before them into kernels of a library (YNN). Where
that is a product, the kernel may be wrong without an error: `jnp.sum(x @ jnp.ones((16, 16)))` gives a 16th of the sum,
and 0.10.2 computes the norms of 32,769 transformed rows wrongly (jax#39103). Other fused reductions crash (jax#39257).

So reductions are left to XLA itself, and single products to the library: without those too, a training step would take
twice as long. `jaxlm.training.known_answers` compares both with numpy.

XLA splits its reductions into windows of 32 numbers, which it adds one by one. Unsplit they are vectorized: with that
pass off, a step of ternary-25m takes 0.87 of the time (AMD EPYC with AVX-512, 2 cores, 2026-11-29), and a sum of 2^29
float32 numbers is still within 3e-6.
"""

import contextlib
import importlib.util
import mmap
import os
from collections.abc import Iterator, MutableMapping
from pathlib import Path

NO_FUSED_REDUCTIONS = "xla_cpu_experimental_ynn_fusion_type"
XLA_FLAGS = {NO_FUSED_REDUCTIONS: "-reduce", "xla_disable_hlo_passes": "tree_reduction_rewriter"}


def set_xla_flags(environment: MutableMapping[str, str] = os.environ) -> None:
    """Append our flags to XLA_FLAGS. XLA reads it when it first compiles or looks for devices; later it has no effect.

    A flag that is there already is left as it is, and so is XLA_FLAGS where it names a file. So is a flag that an
    installed compiler does not know, which would end the process.
    """
    given = environment.get("XLA_FLAGS", "")
    if given and not given.lstrip().startswith("-"):
        return
    missing = [name for name in XLA_FLAGS if f"--{name}" not in given and knows_flag(name)]
    added = [f"--{name}={XLA_FLAGS[name]}" for name in missing]
    if added:
        environment["XLA_FLAGS"] = " ".join([*given.split(), *added])


def knows_flag(name: str) -> bool:
    """Return True if every installed library that reads XLA_FLAGS has a flag of this name; False where none is."""
    libraries = list(_libraries())
    return bool(libraries) and all(_holds_text(path, name) for path in libraries)


def _libraries() -> Iterator[Path]:
    """Yield the library of jaxlib, that for TPUs, and those of plug-ins for other devices, as far as installed."""
    for package, pattern in (
        ("jaxlib", "*jax_common.*"),
        ("libtpu", "libtpu.so"),
        ("jax_plugins", "*/xla_*_plugin.so"),
    ):
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            yield from sorted(Path(folder).glob(pattern))


def _holds_text(path: Path, text: str) -> bool:
    """Return True if a library holds a text as a constant of its own, and not only inside a longer one."""
    with (
        contextlib.suppress(OSError, ValueError),
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        return content.find(b"\0" + text.encode() + b"\0") >= 0
    return False
