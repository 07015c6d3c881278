"""The curves of a run: losses with other runs laid over, speed, learning rate, health of the ternary weights."""

from pathlib import Path

from nicegui import ui

from jaxlm.common.ternary_health import FLIPS, ZEROS, layer_health
from jaxlm.studio.parts.frame import card
from jaxlm.studio.reading.curves import Curve, bounds_of_loss, heat_map, line_chart
from jaxlm.studio.reading.metrics_tail import MetricsTail
from jaxlm.studio.reading.runs import Run
from jaxlm.studio.reading.shown_text import shown_line
from jaxlm.studio.studio import Studio

_KINDS = {"loss": ("train/loss", "val/loss"), "bits per byte": ("val/bits_per_byte",)}
_SMALL = {"tokens per second": "perf/tokens_per_second", "learning rate": "train/learning_rate"}
_MOST_OVERLAYS = 6


class RunCurves:
    """Charts of one run, which `refresh` brings up to date where its file has changed."""

    def __init__(self, studio: Studio, place: Path):
        self._studio, self._place = studio, place
        self._drawn: object = None
        with card("Losses", "nats per token; wheel or pinch zooms"):
            with ui.element("div").classes("line"):
                self._kind = ui.toggle(list(_KINDS), value="loss").props("dense no-caps unelevated")
                self._kind.on_value_change(lambda: self._draw())
                names = [run.name for run in studio.runs.all() if run.path != place]
                self._others = ui.select(names, value=[], multiple=True, label="lay over: twin or other runs")
                self._others.props("outlined dense use-chips").classes("grow").style("min-width: 220px")
                self._others.on_value_change(lambda: self._draw())
            self._losses = ui.echart(line_chart([])).classes("chart")
        with ui.element("div").classes("two"):
            self._small = {}
            for name in _SMALL:
                with card(name):
                    self._small[name] = ui.echart(line_chart([])).classes("chart low")
        with ui.element("div").classes("two") as self._health:
            with card("Zeros of each layer", "share of weights that are 0, over the steps"):
                self._zeros = ui.echart(line_chart([])).classes("chart low")
            with card("Flips of each layer", "share of weights that a step changes"):
                self._flips = ui.echart(line_chart([])).classes("chart low")
        self._health.set_visibility(False)

    def refresh(self, run: Run) -> None:
        """Draw what was written since."""
        tail = self._studio.tail(self._place)
        # Room is kept for what will be written, so that nothing below jumps.
        self._health.set_visibility(run.is_ternary or ZEROS in tail.latest)
        stamp = (tail.latest.get("step"), len(tail.lines), tail.latest.get("val/loss"))
        if stamp != self._drawn or any(other.state == "training" for other in self._overlaid()):
            self._drawn = stamp
            self._draw()

    def _overlaid(self) -> list[Run]:
        found = []
        for name in list(self._others.value)[:_MOST_OVERLAYS]:
            try:
                found.append(self._studio.runs.get(name))
            except ValueError:
                continue
        return found

    def _draw(self) -> None:
        tail = self._studio.tail(self._place)
        curves = self._loss_curves(shown_line(self._place.name, 40), tail, 0)
        for number, other in enumerate(self._overlaid(), 1):
            curves += self._loss_curves(shown_line(other.name, 40), self._studio.tail(other.path), number)
        _replace(self._losses, line_chart(curves, y_bounds=bounds_of_loss(curves)))
        for name, key in _SMALL.items():
            _replace(
                self._small[name],
                line_chart([Curve(name, tail.curve(key), 0 if key.startswith("perf") else 2)], has_legend=False),
            )
        self._draw_health(tail)

    def _loss_curves(self, name: str, tail: MetricsTail, colour: int) -> list[Curve]:
        curves = []
        for key in _KINDS[self._kind.value]:
            is_held_out = key.startswith("val/")
            words = f"{name}, held-out" if is_held_out else name
            curves.append(
                Curve(words, tail.curve(key), 2 * colour + is_held_out, has_marks=is_held_out, is_dashed=is_held_out)
            )
        return [curve for curve in curves if curve.points]

    def _draw_health(self, tail: MetricsTail) -> None:
        if ZEROS not in tail.latest:
            return
        for chart, name, words in ((self._zeros, ZEROS, "zeros"), (self._flips, FLIPS, "flips")):
            layers = layer_health(tail.lines, name)
            if layers is not None:
                rows = [f"layer {layer}" for layer in range(len(layers.shares))]
                steps = [f"{step:,.0f}" for step in layers.places]
                _replace(chart, heat_map(rows, steps, layers.shares, words))
            else:
                points = [[x, 100 * y] for x, y in tail.curve(name)]
                _replace(chart, line_chart([Curve(f"{words} of all layers, %", points, 2)], has_legend=False))


def _replace(chart: ui.echart, options: dict) -> None:
    if chart.options != options:
        chart.options.clear()
        chart.options.update(options)
        chart.update()
