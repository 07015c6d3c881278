"""What a run shows of its model and of its loss: the table of what is ternary, the loss plot."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from rich.table import Table

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.parameters import (
    Parameter,
    parameter_count,
    parameters,
    stored_form,
    tensor_bytes,
    ternary_parameter_count,
)


def coverage_table(config: ModelConfig) -> Table:
    """Which matrices are ternary, how many parameters they hold, and the bytes that a packed artifact will have."""
    table = Table(title="Model")
    for heading in ("parameter", "shape", "stored as"):
        table.add_column(heading, no_wrap=True)
    for heading in ("parameters", "packed bytes"):
        table.add_column(heading, justify="right", no_wrap=True)
    groups: dict[tuple[str, ...], list[Parameter]] = {}
    for parameter in parameters(config):
        groups.setdefault(parameter.path, []).append(parameter)
    for path, group in groups.items():
        packed = sum(t.nbytes for p in group for t in stored_form(p, config, "packed", "float32"))
        shape = " x ".join(map(str, group[0].shape))
        table.add_row(
            ".".join(path).removeprefix("layers."),
            shape if group[0].layer is None else f"{len(group)} layers of {shape}",
            group[0].storage,
            f"{sum(p.size for p in group):,}",
            f"{packed:,}",
        )
    total, ternary = parameter_count(config), ternary_parameter_count(config)
    table.add_section()
    table.add_row("total", "", f"{ternary / total:.0%} ternary", f"{total:,}", f"{tensor_bytes(config, 'packed'):,}")
    return table


def plot_losses(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw training and held-out loss (nats per token) over the tokens seen."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for key, label in (("train/loss", "train"), ("val/loss", "held out")):
        points = [(line["data/tokens_seen"], line[key]) for line in lines if key in line]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o" if key == "val/loss" else None, label=label)
    axes.set_xlabel("tokens seen")
    axes.set_ylabel("loss, nats per token")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
