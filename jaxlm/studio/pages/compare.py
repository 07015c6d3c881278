"""Runs side by side: curves, the settings that differ, the same prompt to two of them, codes that changed."""

import asyncio
from pathlib import Path

from nicegui import ui

from jaxlm.studio.pages.talk import talkers_of
from jaxlm.studio.parts.frame import attempt, card, frame
from jaxlm.studio.parts.log_view import JobBox
from jaxlm.studio.processes.jobs import Command
from jaxlm.studio.processes.model_server import Choice, Talker, ask, checkpoint_view
from jaxlm.studio.processes.recipes import near
from jaxlm.studio.reading.curves import Curve, bounds_of_loss, line_chart
from jaxlm.studio.reading.runs import Run, setting_differences
from jaxlm.studio.reading.shown_text import shown, shown_line
from jaxlm.studio.studio import Studio

_MOST_RUNS = 8
_SECONDS = 3.0


def add_page(studio: Studio) -> None:
    """Add the page."""

    @ui.page("/compare")
    def page(runs: str = "") -> None:
        with frame(studio, "Compare", "/runs"):
            found: list[Run] = []
            for name in [each for each in runs.split(",") if each][:_MOST_RUNS]:
                try:
                    found.append(studio.runs.get(name))
                except ValueError as error:
                    ui.label(shown(str(error), 300)).classes("bad")
            if len(found) < 2:
                with card("Compare"):
                    ui.label("Mark two runs or more in the table of runs.")
                    ui.link("Runs", "/runs")
                return
            _curves(studio, found)
            _differences(found)
            SideBySide(studio, found)


def _curves(studio: Studio, runs: list[Run]) -> None:
    with card("Curves"):
        by = ui.toggle({"data/tokens_seen": "over tokens", "step": "over steps"}, value="data/tokens_seen")
        by.props("dense no-caps unelevated")
        with ui.element("div").classes("two"):
            charts = {name: ui.echart(line_chart([])).classes("chart") for name in ("train/loss", "val/bits_per_byte")}

        def draw() -> None:
            for name, chart in charts.items():
                curves = [
                    Curve(run.name, studio.tail(run.path).curve(name, by.value), number, has_marks=name[0] == "v")
                    for number, run in enumerate(runs)
                ]
                words = "tokens" if by.value == "data/tokens_seen" else "step"
                options = line_chart(curves, x_name=f"{words}: {name}", y_bounds=bounds_of_loss(curves))
                if options != chart.options:
                    chart.options.clear()
                    chart.options.update(options)
                    chart.update()

        by.on_value_change(draw)
        draw()
        ui.timer(_SECONDS, draw)


def _differences(runs: list[Run]) -> None:
    with card("Settings that differ"):
        rows = [
            {"name": name} | {f"r{i}": shown_line(str(value), 80) for i, value in enumerate(values)}
            for name, values in setting_differences(runs)
        ]
        if not rows:
            ui.label("None.").classes("soft")
            return
        columns = [{"name": "name", "label": "setting", "field": "name", "align": "left"}]
        columns += [
            {"name": f"r{i}", "label": run.name, "field": f"r{i}", "align": "left"} for i, run in enumerate(runs)
        ]
        ui.table(columns=columns, rows=rows, row_key="name").classes("w-full").props("flat dense")


class SideBySide:
    """The same prompt and seed to two models, and the ternary codes that differ between them."""

    def __init__(self, studio: Studio, runs: list[Run]):
        self._studio = studio
        self._talkers = talkers_of(studio)
        names = list(self._talkers)
        with card("The same prompt and seed"):
            with ui.element("div").classes("two"):
                self._chosen = [
                    ui.select(names, value=_first(names, run), label=side, with_input=True).props("outlined dense")
                    for run, side in zip(runs[:2], ("left", "right"), strict=True)
                ]
            self._prompt = ui.textarea("prompt", value="def get").props("outlined autogrow").classes("w-full")
            with ui.element("div").classes("line"):
                self._seed = ui.number("seed", value=0, min=0, precision=0).props("outlined dense")
                self._temperature = ui.number("temperature", value=0.7, min=0, step=0.1).props("outlined dense")
                self._button = ui.button("Ask both", on_click=self._ask_both).props("unelevated")
                ui.button("Count the codes that differ", on_click=attempt(self._count)).props("outline")
            with ui.element("div").classes("two"):
                self._answers = [ui.label(" ").classes("said assistant") for _ in range(2)]
            self._jobs = ui.element("div").classes("w-full")
            self._boxes: list[JobBox] = []
        ui.timer(_SECONDS, lambda: [box.refresh() for box in self._boxes])

    def _talker(self, side: int) -> Talker:
        name = self._chosen[side].value
        if name not in self._talkers:
            raise ValueError("choose two models that have a checkpoint")
        return self._talkers[name]

    async def _ask_both(self) -> None:
        self._button.disable()
        await asyncio.gather(*(self._ask(side) for side in range(2)))
        self._button.enable()

    async def _ask(self, side: int) -> None:
        label, prompt = self._answers[side], self._prompt.value or ""
        label.text = "Opening the model ..."
        try:
            server = await self._studio.servers.open(self._talker(side))
            answer = ""
            choice = Choice(120, float(self._temperature.value or 0), 0.95, int(self._seed.value or 0))
            async for piece in ask(server, prompt, choice):
                answer += piece
                label.text = shown(prompt + answer)
        except (ValueError, OSError) as error:
            label.text = shown(str(error), 400)

    def _count(self) -> None:
        places = [near(self._place(self._talker(side))) for side in range(2)]
        title = f"{self._chosen[0].value} and {self._chosen[1].value}"
        job = self._studio.jobs.start("verify", title, None, [Command("verify", tuple(places))], cwd=self._studio.cwd)
        with self._jobs:
            # `verify` ends as failed where a code differs: here that is the answer.
            self._boxes.append(JobBox(job, answer="ternary codes:"))

    def _place(self, talker: Talker) -> Path:
        if talker.step is None:
            return talker.path
        return checkpoint_view(talker.path, talker.step, self._studio.folders.state / "views")


def _first(names: list[str], run: Run) -> str | None:
    return next((name for name in names if name.startswith(f"{run.name},")), names[0] if names else None)
