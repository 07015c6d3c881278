"""The shelf: models under `name@version`, with their card, checked, renamed, removed and taken back."""

from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import quote

from nicegui import run, ui

from jaxlm.common.shelf.shelf import Shelf
from jaxlm.studio.parts.frame import attempt, bytes_in_words, card, complain, count_in_words, frame
from jaxlm.studio.parts.log_view import JobBox
from jaxlm.studio.processes.jobs import Command
from jaxlm.studio.processes.recipes import near
from jaxlm.studio.reading.folders import MODELS
from jaxlm.studio.reading.models import find_models
from jaxlm.studio.reading.shown_text import shown, shown_line
from jaxlm.studio.studio import Studio

_SECONDS = 2.0


def add_page(studio: Studio) -> None:
    """Add the page."""

    @ui.page("/shelf")
    def page() -> None:
        with frame(studio, "Shelf", "/shelf"):
            ShelfPage(studio)


class ShelfPage:
    """The models of `models/` below the root."""

    def __init__(self, studio: Studio):
        self._studio = studio
        self._root = studio.folders.root / MODELS
        self._boxes: list[JobBox] = []
        with card("Shelf", "models under a name and a version; each is a copy that is checked"):
            add = ui.button("Put a model on the shelf", icon="add", on_click=self._ask_model)
            add.props("unelevated").style("align-self: flex-start")
            self._list = ui.element("div").classes("stack")
        self._jobs = ui.element("div").classes("stack")
        self._show()
        ui.timer(_SECONDS, self._refresh)

    def _refresh(self) -> None:
        for box in self._boxes:
            box.refresh()

    def _show(self) -> None:
        self._list.clear()
        with self._list:
            try:
                shelf, warnings = Shelf(self._root), list[str]()
                entries, trash = shelf.entries(warnings.append), shelf.trash()
            except (ValueError, OSError) as error:
                ui.label(shown(str(error), 400)).classes("bad")
                return
            for line in warnings:
                ui.label(shown_line(line, 400)).classes("bad small")
            if not entries:
                ui.label("The shelf is empty.").classes("soft")
            for found in entries:
                self._entry(found)
            if trash:
                with ui.expansion(f"Removed: {len(trash)}").classes("w-full").props("dense"):
                    for name in trash:
                        with ui.element("div").classes("line"):
                            ui.label(str(name)).classes("mono grow")
                            restore = partial(self._do, shelf.restore, str(name))
                            ui.button("Take back", on_click=restore).props("flat dense")

    def _entry(self, found: Any) -> None:
        entry, name = found.entry, str(found.name)
        with ui.element("div").classes("pick").style("cursor: default"):
            with ui.element("div").classes("line"):
                ui.label(name).classes("title")
                ui.label(shown_line(entry.form, 40)).classes("chip")
                bits = "" if entry.bits_per_byte is None else f", {entry.bits_per_byte:.4f} bits per byte"
                sizes = f"{count_in_words(entry.parameters)} parameters, {bytes_in_words(entry.bytes)}{bits}"
                ui.label(sizes).classes("soft small")
            ui.label(f"sha256 {entry.sha256[:16]}..., from {shown_line(entry.source, 120)}").classes("soft small mono")
            note = ", ".join(filter(None, [entry.licence or "no licence", shown_line(entry.notes, 200)]))
            ui.label(note).classes("soft small")
            with ui.element("div").classes("line"):
                model = quote(self._studio.folders.short(found.model))
                for words, action in (
                    ("Talk", partial(ui.navigate.to, f"/talk?model={model}")),
                    ("Fine-tune", partial(ui.navigate.to, f"/finetune?model={model}")),
                    ("Verify", partial(self._start, "models verify", name)),
                    ("Card", partial(self._card, found)),
                    ("Rename", partial(self._ask_name, name)),
                    ("Remove", partial(self._do, Shelf(self._root).remove, name)),
                ):
                    ui.button(words, on_click=action).props("flat dense")

    async def _do(self, action: Callable[[str], Any], name: str) -> None:
        try:
            await run.io_bound(action, name)
        except (ValueError, OSError) as error:
            complain(error)
        self._show()

    def _card(self, found: Any) -> None:
        with ui.dialog() as dialog, ui.card().classes("w-full").style("max-width: 820px"):
            text = (found.folder / "README.md").read_text("utf-8", "replace")
            ui.label(shown(text)).classes("mono")
            ui.button("Close", on_click=dialog.close).props("flat")
        dialog.open()

    def _start(self, command: str, *words: str) -> None:
        made = Command(command, (*words, "--root", near(self._root)))
        job = self._studio.jobs.start("models", words[-1], self._root, [made], cwd=self._studio.cwd)
        with self._jobs:
            self._boxes.append(JobBox(job, self._show))

    def _ask_name(self, name: str) -> None:
        with ui.dialog() as dialog, ui.card():
            field = ui.input("new name", value=name.partition("@")[0])

            async def go() -> None:
                dialog.close()
                await self._do(lambda old: Shelf(self._root).rename(old, (field.value or "").strip()), name)

            ui.button("Rename", on_click=go).props("unelevated")
        dialog.open()

    def _ask_model(self) -> None:
        # The shelf takes whole models. A checkpoint becomes one when its run is done, or is converted.
        models = {shown_line(f"{each.name} ({each.kind})", 120): each for each in find_models(self._studio.folders)}
        with ui.dialog() as dialog, ui.card().classes("w-full"):
            ui.label("Put a model on the shelf").classes("title")
            if not models:
                ui.label("There is no model yet: train one to its end, or convert a checkpoint.")
                ui.button("Close", on_click=dialog.close).props("flat")
                dialog.open()
                return
            chosen = ui.select(list(models), value=next(iter(models)), label="model").classes("w-full")
            name = ui.input("name on the shelf", value="mine").classes("w-full")
            notes = ui.input("notes").classes("w-full")

            def go() -> None:
                model, word = models[str(chosen.value)], (name.value or "").strip()
                if (self._root / word / "config.json").exists():
                    raise ValueError(f"name: models/{word} is a model that is not on the shelf; choose another name")
                dialog.close()
                more = ("--notes", notes.value) if notes.value else ()
                self._start("models add", near(model.path), word, *more)

            with ui.element("div").classes("line"):
                ui.button("Put it there", on_click=attempt(go)).props("unelevated")
                ui.button("Cancel", on_click=dialog.close).props("flat")
        dialog.open()
