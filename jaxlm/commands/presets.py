"""The command `jaxlm presets`: the models that can be trained."""

from dataclasses import dataclass

from rich.table import Table

from jaxlm.common.architecture.parameters import parameter_count, tensor_bytes, ternary_parameter_count
from jaxlm.common.architecture.presets import PRESETS, preset
from jaxlm.common.architecture.training_memory import training_memory
from jaxlm.common.command_line import make_console
from jaxlm.common.run.summary import coverage_table

_BATCH, _SEQ_LEN = 8, 256


@dataclass(frozen=True, kw_only=True)
class PresetsConfig:
    """All presets, or one."""

    name: str | None = None
    """One preset: show each of its matrices, and which are ternary."""


def main(config: PresetsConfig) -> None:
    """List the presets of `jaxlm train --preset NAME`, or show all matrices of one with --name."""
    console = make_console()
    if config.name is not None:
        console.print(coverage_table(preset(config.name)))
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("preset", no_wrap=True)
    for heading in ("size", "ternary", "layers", "width", "context", "packed MB", "train GB"):
        table.add_column(heading, justify="right")
    for name, model in PRESETS.items():
        total = parameter_count(model)
        packed = f"{tensor_bytes(model, 'packed') / 1e6:,.1f}" if model.has_packed_form else "-"
        try:
            memory = f"{training_memory(model, _BATCH, _SEQ_LEN, 4).total / 1e9:,.1f}"
        except ValueError:  # there is no estimate for patterns of mixers
            memory = "-"
        table.add_row(
            name,
            _short(total),
            f"{ternary_parameter_count(model) / total:.0%}",
            str(model.num_layers),
            f"{model.hidden_size:,}",
            f"{model.max_seq_len:,}",
            packed,
            memory,
        )
    console.print(table)
    console.print(
        "With the vocabulary of the preset. Train GB: an estimate of the memory in\n"
        f"training on {_BATCH} x {_SEQ_LEN} tokens in float32 with --remat products; to save all\n"
        "activations takes up to twice as much."
    )


def _short(parameters: int) -> str:
    """Return a number of parameters for people: 4.6M, 374M, 1.36B."""
    return f"{parameters / 1e9:.2f}B" if parameters >= 1e9 else f"{parameters / 1e6:.3g}M"
