"""Curves of runs: losses laid over each other, and the health of ternary weights below them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxlm.common.run.summary import highest_shown
from shared_tokenizer.picture import colour, drawn_picture

_TOKENS = "data/tokens_seen"
_HEALTH = (("ternary/zero_fraction", "zeros"), ("ternary/flip_rate", "flips in a step"))
Lines = Sequence[Mapping[str, Any]]


def draw_runs(runs: Mapping[str, Lines], path: Path) -> None:
    """Draw training loss (thin), held-out loss (thick) and, where runs have them, the shares of zeros and of flips.

    `runs` maps the name of each run to the lines of its metrics.jsonl; a run has the same colour in every part. Losses
    far above the rest, as those of the first steps may be, are left out of the axis.
    """
    health = [(key, label) for key, label in _HEALTH if any(key in line for lines in runs.values() for line in lines)]
    with drawn_picture(path, (8, 4.5 + 1.8 * len(health)), rows=1 + len(health)) as (losses, *others):
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
        (losses, *others)[-1].set_xlabel("tokens seen")


def points(lines: Lines, key: str) -> list[tuple[float, float]]:
    """Return tokens seen and value of each line that has the value as a number."""
    found = ((line.get(_TOKENS), line.get(key)) for line in lines)
    return [(x, y) for x, y in found if isinstance(x, int | float) and isinstance(y, int | float)]
