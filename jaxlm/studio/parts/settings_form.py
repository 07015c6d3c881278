"""The settings of a command as fields: a dozen that matter, the rest folded, mistakes at their field, YAML."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import yaml
from nicegui import run, ui

from jaxlm.studio.processes.settings_check import LEFT_OUT, Mistake, SettingField, SettingsCheck, to_nested
from jaxlm.studio.reading.shown_text import shown

_PATIENCE_SECONDS = 0.35


class SettingsForm:
    """Fields of the settings of a command. `values` are words by name, and are changed as a person types.

    `words` returns the whole command line that is checked; `on_change` is called after every change. `without` names
    settings that are chosen elsewhere on the page.
    """

    def __init__(
        self,
        checker: SettingsCheck,
        command: str,
        values: dict[str, str],
        *,
        first: Sequence[str],
        words: Callable[[], list[str]],
        on_change: Callable[[], Any] = lambda: None,
        without: Sequence[str] = (),
        only_resumable: bool = False,
    ):
        self._checker, self._command, self._values = checker, command, values
        self._first, self._words, self._on_change = first, words, on_change
        self._without, self._only_resumable = without, only_resumable
        self._fields: dict[str, Any] = {}
        self._waiting: asyncio.Task[None] | None = None
        self.mistake: Mistake | None = None
        self._box = ui.element("div").classes("w-full")
        with self._box:
            ui.spinner(size="sm")
        ui.timer(0.01, self._build, once=True)

    async def _build(self) -> None:
        try:
            described = await run.io_bound(self._checker.describe, self._command)
        except ValueError as error:
            self._box.clear()
            with self._box:
                ui.label(shown(str(error))).classes("bad")
            return
        left = [each for each in described or [] if not each.name.startswith(LEFT_OUT)]
        known = {each.name: each for each in left if each.name not in self._without}
        if self._only_resumable:
            known = {name: each for name, each in known.items() if each.resumable}
        shown_first = [known[name] for name in self._first if name in known]
        rest = [each for name, each in known.items() if name not in self._first]
        self._box.clear()
        with self._box:
            with ui.element("div").classes("fields"):
                for each in shown_first:
                    self._field(each)
            self._other = ui.label().classes("bad small")
            with ui.expansion(f"{len(rest)} more settings").classes("w-full").props("dense") as folded:
                pass
            with ui.expansion("As YAML").classes("w-full").props("dense"):
                self._yaml = ui.label().classes("mono")
        self._show_yaml()

        def unfold() -> None:
            if folded.value and not folded.default_slot.children:
                with folded:
                    self._groups(rest)

        folded.on_value_change(unfold)
        await self.check()

    def _groups(self, rest: Sequence[SettingField]) -> None:
        for group in dict.fromkeys(each.group for each in rest):
            ui.label(group).classes("title small q-mt-md")
            with ui.element("div").classes("fields"):
                for each in rest:
                    if each.group == group:
                        self._field(each)

    def _field(self, setting: SettingField) -> None:
        value = self._values.get(setting.name, "")
        default = "" if setting.default in (None, "", [], {}) else str(setting.default)
        if setting.kind in ("bool", "choice"):
            words = ["true", "false"] if setting.kind == "bool" else list(setting.choices)
            options = {"": f"{default.lower() if setting.kind == 'bool' else default} (default)" if default else "none"}
            options |= {word: word for word in words}
            if value and value not in options:
                options[value] = value
            element: Any = ui.select(options, value=value, label=setting.name, validation=lambda _: None)
        else:
            element = ui.input(setting.name, value=value, placeholder=default, validation=lambda _: None)
            if default:
                element.props("stack-label")
        element.without_auto_validation()
        element.classes("w-full").props("dense outlined bottom-slots hide-bottom-space=false")
        element.props(f'data-setting="{setting.name}"')
        if setting.help:
            with element.add_slot("append"):
                ui.icon("help_outline", size="xs").classes("soft").tooltip(setting.help)
        element.on_value_change(lambda event, name=setting.name: self._change(name, event.value))
        self._fields[setting.name] = element

    def _change(self, name: str, value: str | None) -> None:
        if value is None or value == "":
            self._values.pop(name, None)
        else:
            self._values[name] = str(value)
        self._on_change()
        if self._waiting is not None:
            self._waiting.cancel()
        self._waiting = asyncio.create_task(self._check_later())

    async def _check_later(self) -> None:
        await asyncio.sleep(_PATIENCE_SECONDS)
        await self.check()

    async def check(self) -> Mistake | None:
        """Check the whole command line and show its first mistake at its field; return it."""
        try:
            self.mistake = await run.io_bound(self._checker.check, self._command, self._words())
        except ValueError as error:
            name = str(error).partition(":")[0]
            self.mistake = Mistake(str(error), name if name in self._fields else None)
        for name, element in self._fields.items():
            is_here = self.mistake is not None and self.mistake.field == name
            element.error = shown(self.mistake.message, 400) if self.mistake is not None and is_here else None
        is_other = self.mistake is not None and self.mistake.field not in self._fields
        self._other.text = shown(self.mistake.message, 400) if self.mistake is not None and is_other else ""
        self._show_yaml()
        return self.mistake

    def _show_yaml(self) -> None:
        typed = {name: _typed(value) for name, value in self._values.items()}
        self._yaml.text = yaml.safe_dump(to_nested(typed), sort_keys=False) if typed else "{}"


def _typed(word: str) -> Any:
    """Return a word as YAML reads it: a number, a bool, a list, or else the text."""
    try:
        return yaml.safe_load(word)
    except yaml.YAMLError:
        return word
