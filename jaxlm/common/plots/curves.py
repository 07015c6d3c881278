"""Curves of runs: losses laid over each other, and the health of ternary weights below them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxlm.common.run.summary import highest_shown
from jaxlm.common.ternary_health import FLIPS, ZEROS, LayerHealth, layer_health
from shared_tokenizer.picture import HEAT_MAP, colour, drawn_picture

_TOKENS = "data/tokens_seen"
_HEALTH = ((ZEROS, "zeros"), (FLIPS, "flips in a step"))
Lines = Sequence[Mapping[str, Any]]


def draw_runs(runs: Mapping[str, Lines], path: Path) -> None:
    """Draw training loss (thin), held-out loss (thick) and, where runs have them, the shares of zeros and of flips.

    `runs` maps the name of each run to the lines of its metrics.jsonl; a run has the same colour in every part. Losses
    far above the rest, as those of the first steps may be, are left out of the axis. One run alone has heat maps of its
    zeros and flips by layer below, where it has written them.
    """
    health = [(key, label) for key, label in _HEALTH if any(key in line for lines in runs.values() for line in lines)]
    maps = [(label, found) for key, label in _HEALTH if (found := _layers(runs, key))]
    rows = 1 + len(health) + len(maps)
    with drawn_picture(path, (8, 2.7 + 1.8 * rows), rows=rows) as (losses, *others):
        others, heats = others[: len(health)], others[len(health) :]
        heights: list[float] = []
        for number, (name, lines) in enumerate(runs.items()):
            train, held_out = points(lines, "train/loss"), points(lines, "val/loss")
            heights += [height for _, height in [*train, *held_out]]
            if train:
                losses.plot(*zip(*train, strict=True), color=colour(number), linewidth=0.7, alpha=0.6)
            end = f": {held_out[-1][1]:.3f}" if held_out else ""
            places, values = zip(*held_out, strict=True) if held_out else ((), ())
            label = f"{name}{end}".replace("$", r"\$").lstrip("_")
            losses.plot(places, values, color=colour(number), linewidth=1.8, marker="o", markersize=3, label=label)
            for axes, (key, _) in zip(others, health, strict=True):
                if found := points(lines, key):
                    axes.plot(*zip(*found, strict=True), color=colour(number), linewidth=1.2)
        if heights:
            low, high = min(heights), highest_shown(heights)
            margin = 0.05 * (high - low) or 0.05
            losses.set_ylim(low - margin, high + margin)
        losses.set_ylabel("loss, nats per token")
        losses.legend(title="held out (thick), training (thin): at the end", fontsize=8, frameon=False)
        for axes, (_, label) in zip(others, health, strict=True):
            axes.set_ylabel(label)
            axes.yaxis.set_major_formatter(lambda value, place: f"{value:.3g}".rstrip("0").rstrip(".") or "0")
        for axes in (losses, *others):
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
        for axes, (label, found) in zip(heats, maps, strict=True):
            _draw_heat(axes, found, f"layer: {label}")
            axes.set_xlim(losses.get_xlim())
        (losses, *others, *heats)[-1].set_xlabel("tokens seen")


def _layers(runs: Mapping[str, Lines], key: str) -> LayerHealth | None:
    """Return the shares of a run by layer; None of several runs, whose maps would bury the curves."""
    return layer_health(next(iter(runs.values())), key, _TOKENS) if len(runs) == 1 else None


def _draw_heat(axes: Any, health: LayerHealth, label: str) -> None:
    """Draw shares as colours that grow lighter evenly, which people with any colour vision read alike."""
    shares = [[float("nan") if share is None else share for share in row] for row in health.shares]
    colours = axes.pcolormesh(health.places, range(len(shares)), shares, shading="nearest", cmap=HEAT_MAP)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel(label)
    scale = axes.inset_axes((1.01, 0, 0.015, 1))  # next to the axes, so that these stay as wide as the others
    axes.figure.colorbar(colours, cax=scale, format=lambda value, place: f"{value:.3g}")


def points(lines: Lines, key: str) -> list[tuple[float, float]]:
    """Return tokens seen and value of each line that has the value as a number."""
    found = ((line.get(_TOKENS), line.get(key)) for line in lines)
    return [(x, y) for x, y in found if isinstance(x, int | float) and isinstance(y, int | float)]
