"""All runs below the root: a table that is sorted and searched, from which runs are opened and compared."""

from urllib.parse import quote, urlencode

from nicegui import ui

from jaxlm.studio.parts.frame import card, complain, frame
from jaxlm.studio.reading.runs import Run
from jaxlm.studio.reading.shown_text import shown_line
from jaxlm.studio.studio import Studio

_SECONDS = 3.0
_COLUMNS = [
    {"name": "name", "label": "run", "field": "name", "align": "left", "sortable": True},
    {"name": "state", "label": "state", "field": "state", "align": "left", "sortable": True},
    {"name": "model", "label": "model", "field": "model", "align": "left", "sortable": True},
    {"name": "step", "label": "step", "field": "step", "sortable": True},
    {"name": "steps", "label": "of", "field": "steps", "sortable": True},
    {"name": "held", "label": "held-out", "field": "held", "sortable": True},
    {"name": "bits", "label": "bits/byte", "field": "bits", "sortable": True},
    {"name": "speed", "label": "tokens/s", "field": "speed", "sortable": True},
    {"name": "tags", "label": "tags", "field": "tags", "align": "left", "sortable": True},
    {"name": "note", "label": "note", "field": "note", "align": "left"},
]


def add_page(studio: Studio) -> None:
    """Add the page."""

    @ui.page("/runs")
    def page() -> None:
        with frame(studio, "Runs", "/runs"), card("Runs", f"below {studio.folders.root}"):
            _table(studio)


def _table(studio: Studio) -> None:
    with ui.element("div").classes("line"):
        search = ui.input("find: name, model, tag, note").props("outlined dense clearable").classes("grow")
        ui.button("Open", on_click=lambda: open_run()).props("outline")
        ui.button("Compare", on_click=lambda: compare()).props("unelevated")
    table = ui.table(
        columns=_COLUMNS, rows=[row(run) for run in studio.runs.all()], row_key="name", selection="multiple",
        pagination={"rowsPerPage": 25},
    )  # fmt: skip
    table.classes("w-full").props('flat dense binary-state-sort no-data-label="There is no run yet."')
    table.bind_filter_from(search, "value")
    table.on("rowClick", lambda event: ui.navigate.to(f"/run?path={quote(event.args[1]['name'])}"))
    ui.label("A click opens a run; two or more that are marked can be compared.").classes("soft small")

    def open_run() -> None:
        if not table.selected:
            complain(ValueError("open: mark a run first, or click its row"))
            return
        ui.navigate.to(f"/run?path={quote(table.selected[0]['name'])}")

    def compare() -> None:
        if len(table.selected) < 2:
            complain(ValueError("compare: mark two runs or more"))
            return
        ui.navigate.to(f"/compare?{urlencode({'runs': ','.join(each['name'] for each in table.selected)})}")

    def refresh() -> None:
        rows = [row(run) for run in studio.runs.all()]
        if rows != table.rows:
            table.rows = rows

    ui.timer(_SECONDS, refresh)


def row(run: Run) -> dict[str, object]:
    """Return a run as a row of the table; numbers are rounded as they are shown."""

    def rounded(name: str, digits: int) -> float | None:
        value = run.latest.get(name)
        return round(value, digits) if isinstance(value, int | float) else None

    return {
        "name": run.name,
        "state": run.state,
        "model": shown_line(run.model, 60),
        "step": run.step,
        "steps": run.steps,
        "held": rounded("val/loss", 4),
        "bits": rounded("val/bits_per_byte", 4),
        "speed": rounded("perf/tokens_per_second", 0),
        "tags": shown_line(", ".join(run.tags), 80),
        "note": shown_line(run.note, 120),
    }
