"""The command `jaxlm doctor`: what this machine can do, and whether it computes right."""

import importlib.metadata
import importlib.util
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

from jaxlm import __version__
from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.command_line import make_console

# Extra -> the packages by which it is known to be installed.
EXTRAS = {
    "jax": ("jax", "flax", "optax", "orbax.checkpoint"),
    "mlx": ("mlx", "mlx_lm"),
    "serve": ("starlette", "uvicorn"),
    "hub": ("datasets",),
    "cluster": ("ray",),
    "witness": ("torch", "transformers"),
}
# Of the attention that is tested.
_HEAD_DIM = 32


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """The doctor takes no settings of its own."""


@dataclass(frozen=True)
class Check:
    """One thing that was tried."""

    name: str
    is_right: bool
    found: str
    remedy: str = ""


def main(config: DoctorConfig) -> None:
    """Say what this machine is, which extras are installed, which kernels and precisions will be used and why, and
    whether the parts of a training step and MLX give the numbers that numpy gives."""
    console = make_console()
    for title, rows in (("machine", _machine()), ("extras", _extras()), ("training", _training())):
        table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    checks = [_try(name, check, remedy) for name, check, remedy in _CHECKS]
    for check in checks:
        console.print(f"{'ok   ' if check.is_right else 'WRONG'}  {check.name}: {check.found}")
        if not check.is_right:
            console.print(f"       {check.remedy}")
    if not all(check.is_right for check in checks):
        sys.exit(1)


def _machine() -> list[tuple[str, str]]:
    import jax

    from jaxlm.ops.machine.cpu import processor_features
    from jaxlm.training.device_memory import GIB, free_bytes

    devices = jax.devices()
    free = free_bytes(devices[0])
    return [
        (
            "system",
            f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, jaxlm {__version__}",
        ),
        (
            "processor",
            f"{os.cpu_count()} cores, {' '.join(processor_features()) or 'no feature that matters is known'}",
        ),
        ("devices", f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"),
        ("free memory", "unknown" if free is None else f"{free / GIB:.1f} GiB on each device"),
    ]


def _extras() -> list[tuple[str, str]]:
    rows = []
    for extra, packages in EXTRAS.items():
        missing = [package for package in packages if not _is_installed(package)]
        versions = ", ".join(f"{package} {_version(package)}" for package in packages if package not in missing)
        rows.append((extra, f"missing {', '.join(missing)}: pip install 'jaxlm[{extra}]'" if missing else versions))
    return rows


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package.replace(".", "-").replace("_", "-"))
    except importlib.metadata.PackageNotFoundError:
        return ""


def _training() -> list[tuple[str, str]]:
    import jax

    from jaxlm.common.architecture.presets import preset
    from jaxlm.ops import backward_products, int8_product
    from jaxlm.ops.attention import choose_kernel
    from jaxlm.training.resolve import activation_dtype, remat_forms

    device, model = jax.devices()[0], preset("ternary-25m")
    dtype = activation_dtype("auto", device)
    is_cpu = device.platform == "cpu"
    widths = [
        str(width) for width in (256, 512) if backward_products.step_options(device.platform, dtype, "bfloat16", width)
    ]
    forms = remat_forms("auto", model, dtype, device)
    onednn = f"on for models of width {' and '.join(widths)}" if widths else "off: not measured faster here"
    return [
        ("precision", f"{np.dtype(dtype).name} (--dtype): float32 on CPUs, bfloat16 or float16 on accelerators"),
        ("attention", f"{choose_kernel('auto', dtype, model.head_dim, device)} (--attention)"),
        ("int8 products, native", int8_product.native_route().reason if is_cpu else "XLA"),
        ("int8 products by unsigned bytes", int8_product.unsigned_route().reason if is_cpu else "XLA"),
        ("gradients' products, native", _gradients_products()),
        ("oneDNN's products", onednn),
        ("XLA_FLAGS", os.environ.get("XLA_FLAGS", "")),
        ("remat", f"of 8 layers the first that fits of {', '.join(forms)} (--remat)"),
    ]


def _gradients_products() -> str:
    from jaxlm.ops.backward_products import native_dtype, native_route

    dtype = native_dtype()
    return native_route().reason if dtype is None else f"{dtype.name} {native_route().reason}"


def _try(name: str, check: Callable[[], str], remedy: str) -> Check:
    try:
        return Check(name, True, check())
    except ModuleNotFoundError as error:
        return Check(name, True, f"skipped, {error.name} is not installed")
    except Exception as error:
        return Check(name, False, " ".join(f"{type(error).__name__}: {error}".split())[:600], remedy)


_TINY = ModelConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    max_seq_len=32,
    linear="ternary",
    sub_norm=True,
)


def _check_answers() -> str:
    """Compare the parts of a training step with numpy, in each precision that the device trains in."""
    import jax

    from jaxlm.ops.attention import choose_kernel
    from jaxlm.training.known_answers import check_known_answers
    from jaxlm.training.resolve import activation_dtype

    device = jax.devices()[0]
    dtype = activation_dtype("auto", device)
    start = time.perf_counter()
    count = check_known_answers(device, dtype, choose_kernel("auto", dtype, _HEAD_DIM, device))
    return f"{count} arrays of a training step are as numpy computes them, {time.perf_counter() - start:.1f} s"


def _check_step() -> str:
    """Train the same batch for some steps: the loss has to fall from about ln V to half of it."""
    import jax

    from jaxlm.common.run.optimizer_config import OptimizerConfig
    from jaxlm.model.language_model import LanguageModel
    from jaxlm.training.optimizer import learning_rate_schedule, make_optimizer
    from jaxlm.training.train_step import init_state, make_train_step

    recipe = OptimizerConfig(learning_rate=1e-2, warmup_steps=0)
    model, optimizer = LanguageModel(_TINY), make_optimizer(recipe, 40)
    step = make_train_step(model, optimizer, learning_rate_schedule(recipe, 40), 1)
    state = jax.jit(lambda: init_state(model, optimizer, 0))()
    batch = _batch()
    start, losses = time.perf_counter(), []
    for _ in range(40):
        state, metrics = step(state, batch)
        losses.append(float(metrics["train/loss"]))
    if not losses[-1] < losses[0] / 2:
        raise ArithmeticError(f"the loss of one batch went from {losses[0]:.3f} to {losses[-1]:.3f} in 40 steps")
    return f"loss of one batch {losses[0]:.2f} -> {losses[-1]:.2f} in 40 steps, {time.perf_counter() - start:.1f} s"


def _batch() -> Any:
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, _TINY.vocab_size, (4, 17), dtype=np.int32)
    return {
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "positions": np.broadcast_to(np.arange(16, dtype=np.int32), (4, 16)),
        "segment_ids": np.zeros((4, 16), np.int32),
        "loss_mask": np.ones((4, 16), bool),
    }


def _check_mlx() -> str:
    """Compare the parts of fine-tuning with numpy."""
    import mlx.core as mx

    from mlxlm.model.known_answers import check_known_answers

    count = check_known_answers()
    return (
        f"{count} arrays of MLX {importlib.metadata.version('mlx')} on {mx.default_device()} are as numpy computes them"
    )


_UPGRADE = "install other versions of jax and jaxlib (this project is tested with the newest), and report it"
_CHECKS: list[tuple[str, Callable[[], str], str]] = [
    ("known answers", _check_answers, _UPGRADE),
    ("training step", _check_step, _UPGRADE),
    ("MLX known answers", _check_mlx, "pip install --upgrade 'jaxlm[mlx]'"),
]
