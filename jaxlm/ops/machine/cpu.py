"""The fast instructions of this machine's processor, and the compiler options by which XLA uses them."""

import functools
from pathlib import Path
from typing import Any

import jax

_CPU_INFO = Path("/proc/cpuinfo")
_OPTIONS = {
    # oneDNN's products instead of XLA's: a step of ternary-tiny takes 0.95 of the time (AMD EPYC, 2 cores, 2026-11-28).
    "xla_cpu_use_onednn": True,
    "xla_cpu_experimental_onednn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT",
    # 0.97 to 0.98 of the time of ternary-tiny and ternary-25m (the same machine and day).
    "xla_cpu_prefer_vector_width": 512,
}


# Features by which a kernel is chosen here or by a library, as Linux names them (x86, then ARM).
_FEATURES = (
    "avx2",
    "avx512f",
    "avx_vnni",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
    "bf16",
)


def processor_features() -> list[str]:
    """Return the features of this processor that matter for speed; an empty list where Linux does not list them."""
    words = set(_CPU_INFO.read_text().split()) if _CPU_INFO.exists() else set()
    return [feature for feature in _FEATURES if feature in words]


@functools.cache
def has_vnni() -> bool:
    """Return True if this is an x86 processor with AVX-512 VNNI: four byte products in the time of a float32 one."""
    return _CPU_INFO.exists() and "avx512_vnni" in _CPU_INFO.read_text()


def compiler_options(platform: str) -> dict[str, Any]:
    """Return options of `jax.jit` that make a training step faster on a platform; none where they were not measured."""
    return _OPTIONS if platform == "cpu" and has_vnni() and _compiler_knows_options() else {}


@functools.cache
def _compiler_knows_options() -> bool:
    """Return True if this version of XLA accepts the options: some are experiments, which another version may end."""
    try:
        jax.jit(lambda: 0, compiler_options=_OPTIONS).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
