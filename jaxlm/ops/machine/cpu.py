"""The fast instructions of this machine's processor, and the compiler options by which XLA uses them."""

import functools
from pathlib import Path
from typing import Any

import jax

CPU_INFO = Path("/proc/cpuinfo")
_ONEDNN = {
    "xla_cpu_use_onednn": True,
    "xla_cpu_experimental_onednn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT",
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


@functools.cache
def processor_features() -> tuple[str, ...]:
    """Return the features of this processor that matter for speed; none where Linux does not list them."""
    words = set(CPU_INFO.read_text().split()) if CPU_INFO.exists() else set()
    return tuple(feature for feature in _FEATURES if feature in words)


def has_vnni() -> bool:
    """Return True if this is an x86 processor with AVX-512 VNNI: four byte products in the time of a float32 one."""
    return "avx512_vnni" in processor_features()


def onednn_options(platform: str) -> dict[str, Any]:
    """Return options of `jax.jit` by which oneDNN multiplies, where it was measured: x86 with AVX-512 VNNI; else none.

    A step of ternary-tiny takes 0.95 of the time by it where no native kernel multiplies (`jaxlm.ops.native`), and one
    of ternary-25m in float32 0.95 where one does (AMD EPYC, 2 cores, 2026-11-28 and 30).
    """
    return _ONEDNN if platform == "cpu" and has_vnni() and _compiler_knows_options() else {}


@functools.cache
def _compiler_knows_options() -> bool:
    """Return True if this version of XLA accepts the options: some are experiments, which another version may end."""
    try:
        jax.jit(lambda: 0, compiler_options=_ONEDNN).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
