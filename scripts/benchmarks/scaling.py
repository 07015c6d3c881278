"""The cost of a training step when the sequence, batch, layers or devices double, read from its compiled form; and the
time of the compiler for eight times the layers.

No step runs. The devices may be simulated:
`JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=8 python scripts/benchmark.py scaling`.
"""

import time
from dataclasses import dataclass, replace

import jax
from rich.table import Table

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.model_flops import model_flops
from jaxlm.common.architecture.parameters import ternary_parameter_count
from jaxlm.common.architecture.presets import preset
from jaxlm.common.command_line import make_console
from jaxlm.model.language_model import LanguageModel
from jaxlm.parallel.mesh import check_batch, make_mesh
from jaxlm.parallel.mesh_config import MeshConfig
from jaxlm.planning.hlo_costs import hlo_costs
from jaxlm.training.abstract_step import abstract_batch, abstract_step
from jaxlm.training.device_memory import compiled_memory

# Narrow: what the compiler takes depends on the program, not on its widths.
WIDTHS = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 512}
COMPILED = {
    "attention": replace(preset("ternary-tiny"), **WIDTHS, num_heads=2, num_kv_heads=2, head_dim=32),
    "mlgru": replace(preset("mmfree-tiny"), **WIDTHS),
    "hybrid": replace(preset("hybrid-25m"), **WIDTHS, num_heads=2, num_kv_heads=2, head_dim=32),
}
FEW, MANY = 4, 32


@dataclass(frozen=True, kw_only=True)
class ScalingBenchmark:
    """Where the doubling starts."""

    preset: str = "ternary-tiny"
    """Named model configuration."""
    seq_len: int = 256
    """Tokens per sequence."""
    batch_size: int = 16
    """Sequences per optimizer step, over all devices."""
    layers: int = 2
    """Layers of the model."""
    devices: int = 4
    """Devices that split the parameters; there must be twice as many."""


@dataclass(frozen=True)
class Cost:
    """Of one device and step."""

    flops: float
    temporaries: int
    gathered: int
    """Bytes of the arrays that are all-gathered."""


def benchmark(settings: ScalingBenchmark) -> None:
    """Double one size after the other, and compare what the compiled step costs with what it should."""
    if len(jax.devices()) < 2 * settings.devices:
        raise ValueError(
            f"devices: found {len(jax.devices())}, expected {2 * settings.devices}; simulate them with "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={2 * settings.devices}"
        )
    base = measure(settings)
    table = Table(title=f"{settings.preset}, one device and step, times that of {settings}")
    for heading in ("doubled", "FLOPs", "on paper", "temporaries", "gathered bytes", "on paper"):
        table.add_column(heading, justify="left" if heading == "doubled" else "right")
    for name in ("seq_len", "batch_size", "layers", "devices"):
        larger = replace(settings, **{name: 2 * getattr(settings, name)})
        found = measure(larger)
        values = (
            found.flops / base.flops,
            flops_on_paper(larger) / flops_on_paper(settings),
            found.temporaries / base.temporaries,
            found.gathered / base.gathered,
            gathered_on_paper(larger) / gathered_on_paper(settings),
        )
        table.add_row(name, *(f"{value:.3f}" for value in values))
    make_console().print(table)
    make_console().print(compile_times())


def compile_times() -> Table:
    """Processor seconds to compile a step of few and of many layers."""
    table = Table(title="a step compiled for one device, processor seconds")
    for heading in ("token mixer", f"{FEW} layers", f"{MANY} layers", "ratio"):
        table.add_column(heading, justify="left" if heading == "token mixer" else "right")
    _seconds_to_compile(COMPILED["attention"])  # the first is slower
    for name, config in COMPILED.items():
        few, many = (_seconds_to_compile(replace(config, num_layers=layers)) for layers in (FEW, MANY))
        table.add_row(name, f"{few:.1f}", f"{many:.1f}", f"{many / few:.2f}")
    return table


def _seconds_to_compile(config: ModelConfig) -> float:
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    step, state = abstract_step(LanguageModel(config, remat="products"), mesh)
    start = time.process_time()
    with jax.set_mesh(mesh):
        step.lower(state, abstract_batch(mesh, 2, 256)).compile()
    return time.process_time() - start


def measure(settings: ScalingBenchmark) -> Cost:
    """Compile the step and read off its cost."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=-1), jax.devices()[: settings.devices])
    check_batch(mesh, settings.batch_size, 1)
    step, state = abstract_step(LanguageModel(_model(settings)), mesh)
    with jax.set_mesh(mesh):
        compiled = step.lower(state, abstract_batch(mesh, settings.batch_size, settings.seq_len)).compile()
    costs = hlo_costs(compiled.as_text() or "")
    gathered = sum(costs.gathered_bytes().values())
    return Cost(sum(costs.flops.values()), compiled_memory(compiled).temporaries, gathered)


def flops_on_paper(settings: ScalingBenchmark) -> float:
    """Return the bytes of one device."""
    return model_flops(_model(settings), settings.batch_size, settings.seq_len) / settings.devices


def gathered_on_paper(settings: ScalingBenchmark) -> int:
    """Codes in two bits once forward and once backward, the float32 embedding table once."""
    config = _model(settings)
    return ternary_parameter_count(config) // 2 + 4 * config.vocab_size * config.hidden_size


def _model(settings: ScalingBenchmark) -> ModelConfig:
    return replace(preset(settings.preset), num_layers=settings.layers)
