"""Curves as options of ECharts. Colours are those of Okabe and Ito, which colour-blind people tell apart."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C6D31", "#7F7F7F")
# Readable on white and on black.
_GREY = "#808890"
_LINE = "rgba(128,136,144,0.25)"


@dataclass(frozen=True)
class Curve:
    """One curve: its name, its points [x, y], its colour by number."""

    name: str
    points: Sequence[Sequence[float]]
    colour: int = 0
    has_marks: bool = False
    """True for few, exact points, such as evaluations; False for a thin line of many."""
    is_dashed: bool = False


def line_chart(
    curves: Sequence[Curve],
    *,
    x_name: str = "step",
    y_bounds: tuple[float, float] | None = None,
    has_legend: bool = True,
) -> dict[str, Any]:
    """Return the options of a chart of curves, with a legend, a tooltip and zoom by the wheel."""
    y_axis: dict[str, Any] = {
        "type": "value",
        "scale": True,
        "axisLabel": {"color": _GREY, "hideOverlap": True},
        "splitLine": {"lineStyle": {"color": _LINE}},
    }
    if y_bounds is not None:
        y_axis |= {"min": y_bounds[0], "max": y_bounds[1]}
    return {
        "animation": False,
        "backgroundColor": "transparent",
        "color": list(COLOURS),
        "textStyle": {"fontFamily": "inherit"},
        "grid": {"left": 8, "right": 16, "top": 40 if has_legend else 12, "bottom": 24, "containLabel": True},
        "legend": {
            "show": has_legend,
            "type": "scroll",
            "top": 4,
            "textStyle": {"color": _GREY},
            "data": [curve.name for curve in curves],
        },
        "tooltip": {"trigger": "axis", "confine": True, "renderMode": "richText"},
        "xAxis": {
            "type": "value",
            "name": x_name,
            "nameLocation": "middle",
            "nameGap": 26,
            "min": "dataMin",
            "max": "dataMax",
            "nameTextStyle": {"color": _GREY},
            "axisLabel": {"color": _GREY, "hideOverlap": True},
            "splitLine": {"show": False},
        },
        "yAxis": y_axis,
        "dataZoom": [{"type": "inside", "filterMode": "none"}],
        "series": [_series(curve) for curve in curves],
    }


def _series(curve: Curve) -> dict[str, Any]:
    colour = COLOURS[curve.colour % len(COLOURS)]
    return {
        "name": curve.name,
        "type": "line",
        "data": [list(point) for point in curve.points],
        "showSymbol": curve.has_marks,
        "symbolSize": 6,
        "color": colour,
        "lineStyle": {"width": 2, "color": colour, "type": "dashed" if curve.is_dashed else "solid"},
        "emphasis": {"disabled": True},
    }


def bounds_of_loss(curves: Sequence[Curve]) -> tuple[float, float] | None:
    """Return bounds that leave out the first points, which stand far above the rest; None where there is no point."""
    tails = [point[1] for curve in curves for point in _after_start(curve.points)]
    if not tails:
        return None
    low, high = min(tails), max(tails)
    unit = 10.0 ** math.floor(math.log10(max(high - low, 1e-3))) / 2
    return round(unit * math.floor(low / unit), 6), round(unit * math.ceil(high / unit), 6)


def _after_start(points: Sequence[Sequence[float]]) -> Sequence[Sequence[float]]:
    """Return the points without the first tenth, where there are many."""
    return points[len(points) // 10 :] if len(points) > 10 else points


def heat_map(
    rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float | None]], name: str
) -> dict[str, Any]:
    """Return the options of a heat map: `values[row][column]`, shares from 0 to 1 as per cent; no cell for None."""
    cells = [
        [column, row, round(100 * value, 3)]
        for row, line in enumerate(values)
        for column, value in enumerate(line)
        if value is not None
    ]
    largest = max((cell[2] for cell in cells), default=1.0) or 1.0
    smallest = min((cell[2] for cell in cells), default=0.0)
    return {
        "animation": False,
        "backgroundColor": "transparent",
        "tooltip": {"confine": True, "renderMode": "richText"},
        "grid": {"left": 8, "right": 16, "top": 8, "bottom": 46, "containLabel": True},
        "xAxis": {"type": "category", "data": list(columns), "axisLabel": {"color": _GREY, "hideOverlap": True}},
        "yAxis": {"type": "category", "data": list(rows), "axisLabel": {"color": _GREY, "hideOverlap": True}},
        "visualMap": {
            "min": smallest,
            "max": largest,
            "calculable": False,
            "orient": "horizontal",
            "left": "center",
            "bottom": 0,
            "itemHeight": 120,
            "itemWidth": 10,
            "text": [f"{largest:.3g} %", f"{smallest:.3g} %"],
            "textStyle": {"color": _GREY},
            # Cividis, which colour-blind people read as everybody does.
            "inRange": {"color": ["#00224e", "#3b496c", "#7d7c78", "#bcae6c", "#fee838"]},
        },
        "series": [{"name": name, "type": "heatmap", "data": cells}],
    }
