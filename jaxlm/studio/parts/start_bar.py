"""The bar that starts a run: its name, the button, its command lines, or the mistake that keeps it from starting."""

from collections.abc import Callable
from pathlib import Path

from nicegui import run, ui

from jaxlm.studio.parts.frame import command_lines, complain
from jaxlm.studio.reading.shown_text import shown_line
from jaxlm.studio.studio import Draft, Studio


class StartBar:
    """The bar of a draft. `changed` is called when the name changes; `outlook` returns what the run costs, in words."""

    def __init__(
        self,
        studio: Studio,
        draft: Draft,
        changed: Callable[[], None],
        *,
        button: str,
        outlook: Callable[[], str] = lambda: "",
    ):
        self._studio, self._draft, self._changed, self._outlook = studio, draft, changed, outlook
        with ui.element("div").classes("line"):
            self._name = ui.input("Name of the run", value=studio.next_name(draft), validation=lambda _: None)
            self._name.without_auto_validation()
            self._name.props("outlined dense").classes("grow").style("min-width: 150px; max-width: 300px")
            self._name.on_value_change(lambda event: self._rename(event.value))
            self._button = ui.button(button, icon="play_arrow", on_click=self._start).props("unelevated size=lg")
            self._words = ui.label().classes("soft grow").style("min-width: 200px")
        self._lines = ui.element("div").classes("w-full")
        self.describe()

    def _rename(self, name: str | None) -> None:
        self._draft.name = (name or "").strip()
        self._changed()

    def describe(self) -> None:
        """Show the commands, or the mistake that keeps them from starting."""
        self._name.error = None
        self._lines.clear()
        try:
            _, commands = self._studio.commands(self._draft)
        except ValueError as error:
            self._words.text, message = "", str(error)
            if message.startswith("name:"):
                self._name.error = shown_line(message, 300)
            else:
                self._words.text = shown_line(message, 300)
            self._words.classes(add="bad")
            self._button.disable()
            return
        self._button.enable()
        self._words.classes(remove="bad")
        self._words.text = self._outlook()
        with self._lines:
            command_lines([command.line for command in commands])

    async def _start(self) -> None:
        """Start the run once the command line would take it."""
        self._button.disable()
        try:
            _, commands = self._studio.commands(self._draft)
            command = commands[-1]
            mistake = await run.io_bound(self._studio.settings.check, command.name, list(command.words))
            if mistake is not None:
                raise ValueError(mistake.message)
            job = self._studio.start(self._draft)
        except (ValueError, OSError) as error:
            complain(error)
            self._button.enable()
            return
        self._draft.name = ""
        self._studio.keep(self._draft)
        ui.navigate.to(f"/run?path={self._studio.folders.short(Path(job.record['subject']))}")
