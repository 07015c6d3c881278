"""The first step: the text. Files, folders, uploads or a dataset of the hub, with a preview."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from nicegui import run, ui

from jaxlm.studio.parts.folder_picker import FolderPicker, upload_box
from jaxlm.studio.parts.frame import bytes_in_words, card, pick
from jaxlm.studio.processes.recipes import FINETUNE, STDLIB
from jaxlm.studio.reading.shown_text import shown, shown_line
from jaxlm.studio.reading.text_preview import FilePreview, TextPreview, preview
from jaxlm.studio.studio import Draft, Studio
from shared_tokenizer.data.shards import MANIFEST
from shared_tokenizer.sources.row_rules import RowRules

# Settings of how a text is read, each with its help.
READING = {
    "text_column": "column that holds the text; empty finds it",
    "document_characters": "cut longer texts, at line ends",
    "val_fraction": "share that is held out, 0.05",
    "max_bad_rows": "unreadable rows to skip",
}


class TextStep:
    """The choice of the text and what it holds. A fine-tuning reads files alone, and token shards among them."""

    def __init__(self, studio: Studio, draft: Draft, changed: Callable[[], None], most_bytes: int):
        self._studio, self._draft, self._changed, self._most_bytes = studio, draft, changed, most_bytes
        self._is_finetune = draft.command == FINETUNE
        self._reading = draft.train if self._is_finetune else draft.prepare
        self._none = [] if self._is_finetune else [STDLIB]
        self._picker = FolderPicker(studio.folders, self._take)
        with card("Text", "what the model learns from"):
            self._choices = ui.element("div").classes("cards")
            self._sources = ui.element("div").classes("w-full")
            self._settings()
        with card("What is in it") as self._card:
            self._box = ui.element("div").classes("w-full")
        self._show()

    def _show(self) -> None:
        draft = self._draft
        is_own = not draft.hub and not draft.data_dir and draft.input != self._none
        self._choices.clear()
        with self._choices:
            if not self._is_finetune:
                with pick(lambda: self._set([STDLIB]), chosen=not draft.hub and not is_own and not draft.data_dir):
                    ui.label("Python's own library").classes("title")
                    ui.label("about 10 MB of source code that every Python has").classes("soft small")
            with pick(self._picker.open, chosen=is_own):
                ui.label("A folder or file of mine").classes("title")
                ui.label("text, code, json, csv, parquet, chats").classes("soft small")
            with pick(self._ask_upload):
                ui.label("Upload files").classes("title")
                ui.label(f"up to {bytes_in_words(self._most_bytes)}").classes("soft small")
            if not self._is_finetune:
                with pick(self._ask_hub, chosen=bool(draft.hub)):
                    ui.label("A dataset of the hub").classes("title")
                    ui.label("by its name; needs a network").classes("soft small")
        self._sources.clear()
        with self._sources:
            for name in draft.data_dir:
                ui.label(f"token shards: {shown_line(name, 200)}").classes("mono")
            if is_own:
                for name in draft.input:
                    with ui.element("div").classes("line"):
                        ui.label(shown_line(name, 200)).classes("mono")
                        remove = ui.button(icon="close", on_click=partial(self._drop, name))
                        remove.props('flat dense round size=sm aria-label="remove"')
                ui.button("Add another", icon="add", on_click=self._picker.open).props("flat dense")
            if draft.hub:
                ui.label(shown_line(draft.hub, 200)).classes("mono")
        self._box.clear()
        with self._box:
            if draft.hub:
                ui.label("A dataset of the hub is looked at when it is prepared.").classes("soft")
                return
            if draft.data_dir:
                ui.label("These token shards are taken as they are. Choose a text to prepare another one.").classes(
                    "soft"
                )
                return
            if not draft.input:
                ui.label("Nothing is chosen yet: take a file of chats, or a folder of texts.").classes("soft")
                return
            ui.spinner(size="sm")
        ui.timer(0.01, self._look, once=True)

    def _settings(self) -> None:
        with ui.expansion("How it is read").classes("w-full").props("dense"), ui.element("div").classes("fields"):
            for name, words in READING.items():
                field = ui.input(name, value=self._reading.get(name, ""), placeholder=words)
                field.props("outlined dense stack-label").on("blur", lambda: self._show())
                field.on_value_change(lambda event, name=name: self._tune(name, event.value))
            if not self._is_finetune:
                box = ui.checkbox("leave out exact copies (dedup)", value=self._reading.get("dedup") == "true")
                box.on_value_change(lambda event: self._tune("dedup", "true" if event.value else ""))

    def _tune(self, name: str, value: str | None) -> None:
        if value:
            self._reading[name] = value
        else:
            self._reading.pop(name, None)
        self._changed()

    def _set(self, sources: list[str], hub: str = "") -> None:
        self._draft.input, self._draft.hub, self._draft.data_dir = sources, hub, []
        self._changed()
        self._show()

    def _take(self, path: Path) -> None:
        name = str(path)
        kept = [each for each in self._draft.input if each not in (STDLIB, name)]
        self._set([*kept, name])

    def _drop(self, name: str) -> None:
        self._set([each for each in self._draft.input if each != name] or self._none)

    def _ask_upload(self) -> None:
        with ui.dialog() as dialog, ui.card().classes("w-full"):
            ui.label("Upload files").classes("title")

            def done(folder: Path) -> None:
                self._take(folder)

            upload_box(self._studio, self._most_bytes, done)
            ui.button("Close", on_click=dialog.close).props("flat")
        dialog.open()

    def _ask_hub(self) -> None:
        with ui.dialog() as dialog, ui.card().classes("w-full"):
            ui.label("A dataset of the Hugging Face hub").classes("title")
            field = ui.input("name, such as roneneldan/TinyStories", value=self._draft.hub).classes("w-full")

            def take() -> None:
                dialog.close()
                if name := (field.value or "").strip():
                    self._set([STDLIB], name)

            field.on("keydown.enter", take)
            ui.button("Take it", on_click=take)
        dialog.open()

    async def _look(self) -> None:
        draft = self._draft
        try:
            sources = [name if name == STDLIB else str(self._studio.folders.resolve(name)) for name in draft.input]
            column = self._reading.get("text_column") or None
            shards = [name for name in sources if self._is_finetune and (Path(name) / MANIFEST).is_file()]
            if shards == sources:
                self._box.clear()
                with self._box:
                    ui.label("Token shards are taken as they are.").classes("soft")
                return
            texts = [name for name in sources if name not in shards]
            found = await run.io_bound(preview, texts, RowRules(text_column=column))
        except (ValueError, OSError) as error:
            self._box.clear()
            with self._box:
                ui.label(shown(str(error), 600)).classes("bad mono")
            return
        if found is None:
            return
        self._box.clear()
        with self._box:
            show_preview(found)


def show_preview(found: TextPreview) -> None:
    """Show what sources hold."""
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in found.kinds.most_common())
    first = "of the first " if found.is_sample else ""
    with ui.element("div").classes("line small"):
        ui.label(f"{found.total_files:,} files ({kinds}), {bytes_in_words(found.total_bytes)}")
        ui.label(
            f"{first}{found.documents:,} documents: {found.chats:,} chats, {found.duplicates:,} copies of others"
        ).classes("soft")
        ui.label(f"half of them are longer than {found.middle_length:,} characters").classes("soft")
        if found.unreadable:
            ui.label(f"{found.unreadable:,} rows cannot be read").classes("bad")
    for line in (*found.lines, *found.problems):
        ui.label(line).classes("soft small mono")
    for file in found.files:
        _show_file(file)


def _show_file(file: FilePreview) -> None:
    with ui.expansion().classes("w-full").props("dense") as folded:
        with folded.add_slot("header"), ui.element("div").classes("line"):
            ui.label(file.name).classes("mono")
            ui.label(f"{file.kind}, {bytes_in_words(file.size)}").classes("soft small")
            if file.columns:
                ui.label(f"reads {file.columns}").classes("chip")
            if file.problem:
                ui.label("cannot be read").classes("bad small")
        if file.problem:
            ui.label(file.problem).classes("bad small")
        if file.unused:
            ui.label(f"columns that are not used: {', '.join(file.unused)}").classes("soft small")
        for row in file.rows:
            if isinstance(row, str):
                ui.label(row).classes("mono").style(
                    "border-left: 3px solid var(--line); padding: 2px 10px; margin: 6px 0"
                )
                continue
            with ui.element("div").style("margin: 8px 0; display: flex; flex-direction: column; gap: 4px"):
                for turn in row:
                    with ui.element("div").classes("turn" + (" learned" if turn.learned else "")):
                        ui.label(f"{turn.role}{', learned' if turn.learned else ''}").classes("soft small")
                        ui.label(turn.text).classes("mono")
