"""The pictures of a study: curves of all runs, and held-out bits per byte over a setting, bytes and time."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxlm.common.run.summary import highest_shown
from jaxlm.study.results import VariantResult
from jaxlm.study.study import Study
from shared_tokenizer.picture import COLOURS, drawn_picture

BITS = "held-out bits per byte"
# A setting whose values span a larger factor has a logarithmic axis.
LOGARITHMIC = 8


def draw(study: Study, variants: Sequence[VariantResult], directory: Path) -> None:
    """Draw the pictures for which there are numbers; those of earlier reports are replaced."""
    shown = [variant for variant in variants if variant.bits_per_byte is not None]
    if not shown:
        return
    _save(directory / "curves.png", study.question, lambda axes: _curves(axes, shown))
    bytes_of, time_of = ("artifact_bytes", 1e6, "artifact, MB"), ("seconds", 60, "training time, minutes")
    _save(directory / "bytes.png", study.question, lambda axes: _points(axes, shown, *bytes_of))
    _save(directory / "time.png", study.question, lambda axes: _points(axes, shown, *time_of))
    for setting in study.grid:
        if all(isinstance(study.variants[variant.name][setting], int | float) for variant in shown):
            path = directory / f"{setting.split('.')[-1]}.png"
            _save(path, study.question, lambda axes, setting=setting: _over_setting(axes, study, shown, setting))


def _save(path: Path, title: str, fill: Callable[[Any], None]) -> None:
    with drawn_picture(path, (7, 4.5)) as (axes,):
        fill(axes)
        axes.set_title(title, fontsize=10, wrap=True)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)


def _curves(axes: Any, variants: Sequence[VariantResult]) -> None:
    """Draw every run as a thin line, and the mean of a variant's runs as a thick one."""
    heights = []
    for variant, colour in zip(variants, _colours(len(variants)), strict=True):
        curves = [run.curve for run in variant.runs if len(run.curve) > 0]
        for curve in curves:
            axes.plot(*zip(*curve, strict=True), color=colour, linewidth=0.6, alpha=0.6)
            heights += [bits for _, bits in curve]
        by_tokens: dict[int, list[float]] = {}
        for tokens, bits in (point for curve in curves for point in curve):
            by_tokens.setdefault(tokens, []).append(bits)
        full = sorted(
            (tokens, statistics.fmean(bits)) for tokens, bits in by_tokens.items() if len(bits) == len(curves)
        )
        if full:
            axes.plot(*zip(*full, strict=True), color=colour, linewidth=1.8, marker=".", label=variant.name)
    if heights:
        low, high = min(heights), highest_shown(heights)
        margin = 0.05 * (high - low) or 0.05
        axes.set_ylim(low - margin, high + margin)
    axes.set_xlabel("tokens seen")
    axes.set_ylabel(BITS)


def _points(axes: Any, variants: Sequence[VariantResult], name: str, unit: float, label: str) -> None:
    """Draw a point for each variant, with the interval of its mean."""
    for variant, colour in zip(variants, _colours(len(variants)), strict=True):
        assert variant.bits_per_byte is not None
        place, height = (variant.mean(name) or 0.0) / unit, variant.bits_per_byte.mean
        style = {"color": colour, "marker": "o", "capsize": 3, "label": variant.name}
        axes.errorbar([place], [height], yerr=_error(variant), **style)
    axes.set_xlabel(label)
    axes.set_ylabel(BITS)


def _over_setting(axes: Any, study: Study, variants: Sequence[VariantResult], setting: str) -> None:
    """Draw bits per byte over the values of a setting of the grid, a line for each combination of the others."""
    lines: dict[str, list[tuple[float, VariantResult]]] = {}
    for variant in variants:
        point = study.variants[variant.name]
        others = ", ".join(f"{name.split('.')[-1]}={value}" for name, value in point.items() if name != setting)
        lines.setdefault(others, []).append((point[setting], variant))
    for (others, points), colour in zip(lines.items(), _colours(len(lines)), strict=True):
        points.sort(key=lambda point: point[0])
        places = [place for place, _ in points]
        means = [variant.bits_per_byte.mean for _, variant in points if variant.bits_per_byte is not None]
        errors = [_error(variant) or 0.0 for _, variant in points]
        axes.errorbar(places, means, yerr=errors, color=colour, marker="o", capsize=3, label=others or study.name)
        if places[0] > 0 and places[-1] >= LOGARITHMIC * places[0]:
            axes.set_xscale("log")
    axes.set_xlabel(setting)
    axes.set_ylabel(BITS)


def _error(variant: VariantResult) -> float | None:
    return None if variant.bits_per_byte is None else variant.bits_per_byte.half_width


def _colours(count: int) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(count)]
