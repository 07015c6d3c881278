"""The second step: the tokenizer. A new one of a size, or one of a model; a box that shows the pieces of a text."""

from collections.abc import Callable
from pathlib import Path

from nicegui import run, ui

from jaxlm.studio.parts.folder_picker import FolderPicker
from jaxlm.studio.parts.frame import card, complain, pick
from jaxlm.studio.processes.recipes import data_place
from jaxlm.studio.reading.shown_text import shown, shown_line
from jaxlm.studio.reading.text_pieces import cut_into_pieces
from jaxlm.studio.studio import Draft, Studio

# Light enough for dark ink, apart in lightness too.
PIECE_COLOURS = ("#bfe3ff", "#ffe0a3", "#bdebd9", "#f2d0e4", "#e3e6e9")
_EXAMPLE = "def greeting(name):\n    return f'Hello, {name}! Grüße aus Zürich 🙂'"
_SIZES = ("1024", "2048", "4096", "8192", "16384")


class TokenizerStep:
    """The choice of the tokenizer."""

    def __init__(self, studio: Studio, draft: Draft, changed: Callable[[], None]):
        self._studio, self._draft, self._changed = studio, draft, changed
        title = "Take the tokenizer of a run, a model, or a vocab.json"
        self._picker = FolderPicker(studio.folders, self._take, title=title)
        with card("Tokenizer", "how the text is cut into tokens"):
            self._choices = ui.element("div").classes("cards")
            self._size = ui.element("div").classes("w-full")
        with card("A text in pieces"):
            self._text = ui.textarea("Text", value=_EXAMPLE).props("outlined autogrow").classes("w-full")
            self._text.on_value_change(lambda: self._cut())
            self._pieces = ui.element("div").classes("w-full")
        self._show()

    def _show(self) -> None:
        draft = self._draft
        self._choices.clear()
        with self._choices:
            with pick(lambda: self._set(""), chosen=not draft.tokenizer):
                ui.label("A new one of this text").classes("title")
                ui.label("trained before the shards are written").classes("soft small")
            with pick(self._picker.open, chosen=bool(draft.tokenizer)):
                ui.label("Take one").classes("title")
                words = shown_line(draft.tokenizer, 60) if draft.tokenizer else "of a run, a model, or a vocab.json"
                ui.label(words).classes("soft small")
        self._size.clear()
        if not draft.tokenizer:
            with self._size, ui.element("div").classes("line"):
                field = ui.input("vocab_size", value=draft.vocab_size, autocomplete=list(_SIZES))
                field.props("outlined dense").on_value_change(lambda event: self._resize(event.value))
                ui.label("tokens; more make texts shorter and the model larger").classes("soft small")
        self._cut()

    def _resize(self, size: str | None) -> None:
        self._draft.vocab_size = (size or "").strip()
        self._changed()
        self._cut()

    def _set(self, tokenizer: str) -> None:
        self._draft.tokenizer = tokenizer
        self._changed()
        self._show()

    def _take(self, path: Path) -> None:
        try:
            self._studio.tokenizers.get(path)
        except (ValueError, OSError) as error:
            complain(error)
            return
        self._set(str(path))

    def _place(self) -> Path | None:
        """Return the tokenizer of the draft, None where it is not trained yet."""
        if self._draft.data_dir:
            return self._studio.folders.resolve(self._studio.cwd / self._draft.data_dir[0]) / "tokenizer"
        if self._draft.tokenizer:
            return self._studio.folders.resolve(self._draft.tokenizer)
        place = data_place(self._draft.text_choice, self._studio.folders) / "tokenizer"
        return place if place.is_dir() else None

    def _cut(self) -> None:
        ui.timer(0.01, self._cut_now, once=True)

    async def _cut_now(self) -> None:
        self._pieces.clear()
        with self._pieces:
            try:
                place = self._place()
                if place is None:
                    text = (
                        "The new tokenizer is trained with the first run of this text; its pieces are shown here then."
                    )
                    ui.label(text).classes("soft small")
                    return
                tokenizer = await run.io_bound(self._studio.tokenizers.get, place)
                assert tokenizer is not None
                found = cut_into_pieces(self._text.value or "", tokenizer)
            except (ValueError, OSError) as error:
                ui.label(shown(str(error), 400)).classes("bad small")
                return
            with ui.element("div").classes("mono").style("line-height: 1.9"):
                for number, piece in enumerate(found.pieces):
                    colour = PIECE_COLOURS[number % len(PIECE_COLOURS)]
                    words = piece.text.replace("\n", "⏎\n") if piece.text.strip("\n") else "⏎\n" * len(piece.text)
                    label = ui.element("span").classes("piece").style(f"background: {colour}")
                    label.props(f'title="id {piece.id}, {piece.size} bytes"')
                    with label:
                        ui.label(words).style("display: inline; white-space: pre-wrap")
            tokens = len(found.pieces)
            ui.label(
                f"{tokens:,} tokens, {found.bytes_per_token:.2f} bytes per token, "
                f"vocabulary of {tokenizer.vocab_size:,}"
                f"{'' if found.gives_back else '; decoding does not give back this text'}"
                f"{'; the first 4,000 characters' if found.is_cut else ''}"
            ).classes("soft small")
