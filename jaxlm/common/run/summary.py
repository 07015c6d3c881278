"""Tables of a model and of a run, and the plot of its losses."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
from shared_tokenizer.manifest import replaced_file


def coverage_table(config: ModelConfig) -> Table:
    """Return a table of all matrices: which are ternary, their parameters, and their bytes in a packed artifact."""
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


def run_table(
    name: str, config: ModelConfig, *, steps: int, batch: str, tokens_per_step: int, tokens_per_epoch: int
) -> Table:
    """Return a short table of a run: the model, its size, and the tokens that it will see."""
    total, ternary = parameter_count(config), ternary_parameter_count(config)
    tokens = steps * tokens_per_step
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("model", f"{name}: {total:,} parameters, {ternary / total:.0%} ternary")
    if config.has_packed_form:
        table.add_row("file", f"{format_bytes(tensor_bytes(config, 'packed'))} packed")
    table.add_row("steps", f"{steps:,} of {batch} = {tokens_per_step:,} tokens")
    table.add_row("tokens", f"{tokens:,}, {tokens / total:.2g} per parameter")
    table.add_row("epochs", f"{tokens / tokens_per_epoch:.2f} of {tokens_per_epoch:,} training tokens")
    return table


def format_bytes(nbytes: float) -> str:
    """Return a size for people, in powers of 1000: `163.1 kB`, `4.6 MB`, `1.2 GB`."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if nbytes >= size:
            return f"{nbytes / size:.1f} {unit}"
    return f"{nbytes / 1e3:.1f} kB"


def plot_losses(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw training and held-out loss (nats per token) over the tokens seen.

    The axis leaves out points far above the rest, as those of the first steps may be, and says so. Raises OSError with
    the name of the file.
    """
    import matplotlib  # here, as it is slow to import, and most that import this file draw nothing

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    losses: list[float] = []
    for key, label in (("train/loss", "train"), ("val/loss", "held out")):
        found = ((line.get("data/tokens_seen"), line.get(key)) for line in lines)
        # A log may have been damaged: its names and numbers are nobody's input but the picture's.
        points = [(x, y) for x, y in found if isinstance(x, int | float) and isinstance(y, int | float)]
        losses += [loss for _, loss in points]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o" if key == "val/loss" else None, label=label)
    highest = highest_shown(losses)
    if losses and max(losses) > highest:
        margin = 0.05 * (highest - min(losses)) or 0.05
        axes.set_ylim(min(losses) - margin, highest + margin)
        above = [loss for loss in losses if loss > highest]
        note = f"{len(above)} point(s) above, up to {max(above):.1f}"
        axes.text(0.02, 0.98, note, transform=axes.transAxes, va="top", fontsize=8)
    axes.set_xlabel("tokens seen")
    axes.set_ylabel("loss, nats per token")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(loc="upper right")
    try:
        with replaced_file(path) as temporary:
            figure.savefig(temporary, dpi=120, bbox_inches="tight", format="png")
    finally:
        pyplot.close(figure)


def highest_shown(losses: Sequence[float]) -> float:
    """Return the largest loss that a plot shows: Tukey's far fence above the third quartile leaves out the others.

    The fence is counted from the smallest loss, because a curve that falls is steep only in its first points.
    """
    if len(losses) < 3:
        return max(losses, default=0.0)
    lowest, third_quartile = min(losses), statistics.quantiles(losses, n=4, method="inclusive")[2]
    fence = third_quartile + 3 * (third_quartile - lowest)
    return max(loss for loss in losses if loss <= fence)
