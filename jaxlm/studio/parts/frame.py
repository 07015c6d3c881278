"""The frame of every page: head with the ways, colours for day and night, and parts that pages share."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from nicegui import ui

from jaxlm.studio.parts.style import STYLE
from jaxlm.studio.reading.shown_text import shown

WAYS = (
    ("/", "New model"),
    ("/finetune", "Fine-tune"),
    ("/runs", "Runs"),
    ("/talk", "Talk"),
    ("/shelf", "Shelf"),
    ("/jobs", "Jobs"),
)


class Look(Protocol):
    """The holder of the look: the studio, for all of its pages, or one page alone."""

    @property
    def dark(self) -> bool | None:
        """True for dark pages, False for light ones, None as the browser has it."""
        ...

    @dark.setter
    def dark(self, value: bool | None) -> None: ...


@contextlib.contextmanager
def frame(
    look: Look, title: str, here: str = "", *, brand: str = "jaxlm studio", ways: Sequence[tuple[str, str]] = WAYS
) -> Iterator[None]:
    """Build the head of a page with the ways to the others, and put what is built inside below it."""
    ui.page_title(f"{title} - {brand}" if title else brand)
    ui.colors(primary="#0072B2", positive="#009E73", negative="#b3261e", warning="#E69F00")
    ui.add_css(STYLE)
    dark = ui.dark_mode(look.dark)
    with ui.element("header").classes("head"), ui.element("div").classes("head-inner"):
        ui.label(brand).classes("brand")
        if ways:
            with ui.element("nav").classes("line").style("gap: 2px; flex-wrap: nowrap; width: auto"):
                for address, name in ways:
                    ui.link(name, address).classes("way" + (" here" if address == here else ""))
        ui.space()

        async def turn() -> None:
            if look.dark is None:  # as the browser has it, which only the browser knows
                look.dark = await ui.run_javascript("document.body.classList.contains('body--dark')")
            look.dark = dark.value = not look.dark

        button = ui.button(icon="contrast", on_click=turn)
        button.props('flat round dense aria-label="dark or light"')
    with ui.element("main").classes("page"):
        yield


@contextlib.contextmanager
def card(title: str = "", more: str = "") -> Iterator[ui.element]:
    """Build a card with a title and a line below it."""
    with ui.element("section").classes("card") as element:
        if title:
            with ui.element("div").classes("line"):
                ui.label(title).classes("title")
                if more:
                    ui.label(more).classes("soft small")
        yield element


def chip(state: str) -> ui.label:
    """Build the mark of a state."""
    return ui.label(state).classes(f"chip {state}")


def complain(error: Exception) -> None:
    """Show a mistake until it is closed."""
    ui.notify(shown(str(error), 600), type="negative", multi_line=True, close_button="Close", timeout=0)


def attempt(action: Callable[[], Any]) -> Callable[[], Any]:
    """Return an action that shows its mistakes instead of raising them."""

    def tried() -> Any:
        try:
            return action()
        except (ValueError, OSError) as error:
            complain(error)
            return None

    return tried


def command_lines(lines: Sequence[str]) -> None:
    """Show command lines, folded, with a button that copies them."""
    with ui.expansion("Command line").classes("w-full soft").props("dense"):
        for line in lines:
            with ui.element("div").classes("line").style("flex-wrap: nowrap"):
                ui.label(line).classes("mono grow")
                copy_button(line)


def copy_button(text: str) -> None:
    """Build a button that copies a text."""

    def copy() -> None:
        ui.clipboard.write(text)
        ui.notify("copied", timeout=900)

    ui.button(icon="content_copy", on_click=copy).props('flat dense round size=sm aria-label="copy"')


def pick(on_click: Callable[[], Any], *, chosen: bool = False) -> ui.element:
    """Build a card that is chosen by a click or by the keyboard."""
    element = ui.element("button").classes("pick" + (" chosen" if chosen else ""))
    element.props('type="button"').on("click", lambda: on_click())
    return element


def number(name: str, value: str = "-") -> ui.label:
    """Build a number with its name; return the label of the number."""
    with ui.element("div").classes("number"):
        ui.label(name).classes("soft small")
        return ui.label(value).classes("value")


def bytes_in_words(size: float) -> str:
    """Return a size for people."""
    for unit, unit_size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= unit_size:
            return f"{size / unit_size:.1f} {unit}"
    return f"{size:.0f} bytes"


def time_in_words(seconds: float | None) -> str:
    """Return a time for people, `-` where it is not known."""
    if seconds is None:
        return "-"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.0f} days"


def count_in_words(value: float) -> str:
    """Return a number of parameters or tokens for people."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"
