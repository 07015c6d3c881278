"""What a training step costs when the sequence, batch, layers or devices double, read from its compiled form.

Nothing runs and nothing is timed. The devices may be simulated:
`JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=8 python scripts/benchmark.py scaling`.
"""

from dataclasses import dataclass, replace

import jax
from rich.table import Table

from jaxlm.compile_for import Settings as StepSettings
from jaxlm.compile_for import abstract_batch, abstract_step, compiled_memory, model_flops, resolve_model
from jaxlm.hlo_costs import hlo_costs
from jaxlm.sharding import MeshConfig, check_batch, make_mesh
from jaxlm.spec.command_line import make_console
from jaxlm.spec.names import ternary_parameter_count


@dataclass(frozen=True, kw_only=True)
class Settings:
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
    """Bytes of the arrays that are brought together."""


def benchmark(settings: Settings) -> None:
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


def measure(settings: Settings) -> Cost:
    """Compile the step and read off its cost."""
    step_settings = _step_settings(settings)
    mesh = make_mesh(step_settings.mesh, jax.devices()[: settings.devices])
    check_batch(mesh, settings.batch_size, 1)
    step, state = abstract_step(resolve_model(step_settings), step_settings, mesh)
    with jax.set_mesh(mesh):
        compiled = step.lower(state, abstract_batch(mesh, settings.batch_size, settings.seq_len)).compile()
    costs = hlo_costs(compiled.as_text() or "")
    gathered = sum(costs.gathered_bytes().values())
    return Cost(sum(costs.flops.values()), compiled_memory(compiled).temporaries, gathered)


def flops_on_paper(settings: Settings) -> float:
    """Of one device."""
    config = resolve_model(_step_settings(settings))
    return model_flops(config, settings.batch_size, settings.seq_len) / settings.devices


def gathered_on_paper(settings: Settings) -> int:
    """Codes once forward and once backward, the float32 embedding table once."""
    config = resolve_model(_step_settings(settings))
    return 2 * ternary_parameter_count(config) + 4 * config.vocab_size * config.hidden_size


def _step_settings(settings: Settings) -> StepSettings:
    return StepSettings(
        topology="",
        preset=settings.preset,
        model={"num_layers": settings.layers},
        mesh=MeshConfig(data=1, fsdp=-1),
        seq_len=settings.seq_len,
        dtype="float32",
        remat="none",
    )
