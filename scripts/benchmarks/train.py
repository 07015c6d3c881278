"""Our training step against PyTorch's: transformers' own BitNet, and a plain Llama with fake-quantized linears."""

import functools
import importlib.util
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from benchmarks.measuring.candidates import Measured, OnDevice, Setup, measure, measure_apart
from benchmarks.measuring.training_step import example_batch, on_device, training_step
from rich.table import Table

from jaxlm.checkpoints.export import export_artifact
from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.model_flops import model_flops
from jaxlm.common.architecture.presets import preset
from jaxlm.common.command_line import make_console
from jaxlm.model.language_model import init_params
from jaxlm.ops.backward_products import native_dtype

Peer = Literal["bitnet", "bitnet-compiled", "fake", "fake-compiled", "fake-bf16", "fake-bf16-compiled"]
PEERS: dict[str, str] = {
    "bitnet": "transformers BitNet",
    "bitnet-compiled": "transformers BitNet, compiled",
    "fake": "Llama, fake quantization",
    "fake-compiled": "Llama, fake quantization, compiled",
    "fake-bf16": "Llama, fake quantization, bf16 autocast",
    "fake-bf16-compiled": "Llama, fake quantization, bf16 autocast, compiled",
}
BEST_PRODUCT = "best product"
LARGEST_PRODUCT = {"cpu": 4096, "gpu": 8192}


@dataclass(frozen=True, kw_only=True)
class TrainBenchmark:
    """Settings of the measurement."""

    presets: list[str] = field(default_factory=lambda: ["ternary-tiny", "ternary-25m"])
    """Ternary models to train; each is compared with its float twin in JAX and with the peers."""
    batch_size: int = 8
    """Sequences per step."""
    seq_len: int = 256
    """Tokens per sequence."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of our activations, and of PyTorch's autocast where a peer does not say otherwise."""
    turns: int = 7
    """Timed steps of each; in turns, but on a GPU one after another."""
    peers: list[Peer] = field(default_factory=lambda: list(PEERS))  # pyright: ignore[reportArgumentType]
    """PyTorch's forms to compare with."""


def benchmark(settings: TrainBenchmark) -> None:
    """Print tokens/s, peak memory and utilization of every form of the same model and batch."""
    if settings.peers and importlib.util.find_spec("torch") is None:
        raise ValueError("peers: torch is not installed; pip install '.[witness]', or set --peers '[]'")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU is shared with PyTorch
    for name in settings.presets:
        ternary = replace(preset(name), max_seq_len=max(settings.seq_len, preset(name).max_seq_len))
        dense = replace(ternary, linear="dense", sub_norm=False, linear_norm=False, ternary_head=False)
        with tempfile.TemporaryDirectory() as folder:
            candidates = _candidates(settings, ternary, dense, Path(folder))
            found = (measure if _device() == "cpu" else measure_apart)(candidates, settings.turns)
        _print(settings, name, ternary, found)


def _candidates(settings: TrainBenchmark, ternary: ModelConfig, dense: ModelConfig, folder: Path) -> dict[str, Setup]:
    shape, dtype = (settings.batch_size, settings.seq_len), settings.dtype
    # As shipped: --remat auto and --backward_dtype auto.
    backward = "bfloat16" if dtype == "float32" and native_dtype() == jnp.bfloat16 else None
    ours = functools.partial(training_step, ternary, *shape, dtype=dtype, backward_dtype=backward)
    candidates: dict[str, Setup] = {
        "jaxlm ternary": ours,
        "jaxlm ternary, --remat ternary": functools.partial(ours, remat="ternary"),
        "jaxlm float": functools.partial(training_step, dense, *shape, dtype=dtype, backward_dtype=backward),
    }
    if backward is not None:
        candidates["jaxlm ternary, --backward_dtype float32"] = functools.partial(ours, backward_dtype=None)
    for config, kind in ((ternary, "bitnet"), (dense, "fake")):
        if any(peer.startswith(kind) for peer in settings.peers):
            with jax.default_device(jax.devices("cpu")[0]):
                params = jax.jit(functools.partial(init_params, config))(jax.random.key(0))
            export_artifact(folder / kind, config, params, "latent")
    for peer in settings.peers:
        candidates[PEERS[peer]] = functools.partial(_torch_step, peer, folder, ternary.vocab_size, *shape, dtype)
    return candidates | {BEST_PRODUCT: functools.partial(_best_product, dtype)}


def _device() -> Literal["cpu", "gpu"]:
    return "cpu" if jax.default_backend() == "cpu" else "gpu"


def _torch_step(
    peer: Peer, folder: Path, vocab_size: int, batch_size: int, seq_len: int, dtype: str
) -> Callable[[], Any]:
    """Return one step of a peer, with torch's fused AdamW and the same clip of the gradient."""
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    kind, *options = peer.split("-")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / kind, dtype=torch.float32).train()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    if kind == "fake":
        _fake_quantize(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    batch = example_batch(vocab_size, batch_size, seq_len)
    ids, targets = (torch.from_numpy(batch[name]).long().to(device) for name in ("inputs", "targets"))
    autocast = "bf16" in options or dtype == "bfloat16"

    def loss_of(ids: Any, targets: Any) -> Any:
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            logits = model(ids, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    if "compiled" in options:
        loss_of = torch.compile(loss_of)

    def step() -> None:
        loss_of(ids, targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()

    return step if device == "cpu" else OnDevice(step, torch.cuda.max_memory_allocated)


def _fake_quantize(model: Any) -> None:
    """Put fake-quantized linears in the place of all but the head: rounded floats with straight-through gradients."""
    import torch

    class FakeQuantizedLinear(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scale = 127 / x.detach().abs().amax(-1, keepdim=True).clamp_(min=1e-5)
            x = x + ((x * scale).round().clamp(-128, 127) / scale - x).detach()
            weight, mean = self.weight, self.weight.detach().abs().mean().clamp_(min=1e-5)
            weight = weight + ((weight / mean).round().clamp(-1, 1) * mean - weight).detach()
            return torch.nn.functional.linear(x, weight)

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            module.__class__ = FakeQuantizedLinear


def _best_product(dtype: str) -> Callable[[], Any]:
    """Time the square product that utilization is measured against, of random numbers: zeros are faster on a GPU."""
    size = LARGEST_PRODUCT[_device()]
    matrix = jax.random.normal(jax.random.key(0), (size, size), dtype)
    product = jax.jit(jnp.matmul)
    return on_device(lambda: jax.block_until_ready(product(matrix, matrix)))


def _print(settings: TrainBenchmark, name: str, config: ModelConfig, found: dict[str, Measured]) -> None:
    tokens = settings.batch_size * settings.seq_len
    size = LARGEST_PRODUCT[_device()]
    peak = 2 * size**3 / found.pop(BEST_PRODUCT).seconds
    ours = found["jaxlm ternary"]
    table = Table(
        title=f"{name}, {settings.batch_size} x {settings.seq_len} tokens a step, {settings.dtype} unless said"
    )
    table.add_column("training step")
    for heading in ("tokens/s", "ours / it", "peak MB", "ours / it", "utilization"):
        table.add_column(heading, justify="right")
    for label, measured in found.items():
        table.add_row(
            label,
            f"{tokens / measured.seconds:,.0f}",
            f"{measured.seconds / ours.seconds:.2f}",
            f"{measured.peak_bytes / 1e6:,.0f}",
            f"{ours.peak_bytes / measured.peak_bytes:.2f}",
            f"{model_flops(config, settings.batch_size, settings.seq_len) / measured.seconds / peak:.0%}",
        )
    console = make_console()
    console.print(table)
    console.print(f"utilization: of {peak / 1e9:,.0f} GFLOP/s, XLA's {settings.dtype} product of {size} squared")
