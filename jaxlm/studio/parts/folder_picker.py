"""A dialog that walks the allowed folders, and uploads into the root."""

from collections.abc import Callable
from pathlib import Path

from nicegui import events, ui

from jaxlm.studio.parts.frame import bytes_in_words, complain
from jaxlm.studio.reading.folders import TEXTS, Folders
from jaxlm.studio.studio import Studio


class FolderPicker:
    """A dialog in which a person chooses a folder or a file; `on_pick` receives its path."""

    def __init__(self, folders: Folders, on_pick: Callable[[Path], None], *, title: str = "Choose a folder or a file"):
        self._folders, self._on_pick = folders, on_pick
        self._here = folders.root
        with ui.dialog() as self._dialog, ui.card().classes("w-full").style("max-width: 640px; gap: 8px"):
            ui.label(title).classes("title")
            self._place = ui.label().classes("mono soft")
            self._list = ui.element("div").style("height: 340px; overflow: auto; width: 100%")
            with ui.element("div").classes("line"):
                ui.button("This folder", on_click=lambda: self._choose(self._here))
                ui.button("Cancel", on_click=self._dialog.close).props("flat")

    def open(self) -> None:
        """Show the dialog."""
        self._show(self._here)
        self._dialog.open()

    def _show(self, folder: Path) -> None:
        try:
            entries = self._folders.entries(folder)
        except (ValueError, OSError) as error:
            complain(error)
            return
        self._here = self._folders.resolve(folder)
        self._place.text = str(self._here)
        self._list.clear()
        with self._list, ui.list().props("dense").classes("w-full"):
            for other in self._folders.allowed:
                if other != self._here and not (self._here != other and self._here.is_relative_to(other)):
                    self._item("folder_special", str(other), "", lambda other=other: self._show(other))
            if self._here not in self._folders.allowed:
                self._item("arrow_upward", "..", "", lambda: self._show(self._here.parent))
            for entry in entries:
                path = entry.path
                if entry.is_folder:
                    self._item("folder", entry.name, "", lambda path=path: self._show(path))
                else:
                    size = bytes_in_words(entry.size)
                    self._item("description", entry.name, size, lambda path=path: self._choose(path))
            if not entries:
                ui.item("nothing to read here")

    def _item(self, icon: str, name: str, more: str, on_click: Callable[[], None]) -> None:
        with ui.item(on_click=on_click):
            with ui.item_section().props("avatar").style("min-width: 36px"):
                ui.icon(icon, size="sm")
            with ui.item_section():
                ui.item_label(name)
            if more:
                with ui.item_section().props("side"):
                    ui.item_label(more).props("caption")

    def _choose(self, path: Path) -> None:
        self._dialog.close()
        self._on_pick(path)


def upload_box(studio: Studio, most_bytes: int, on_done: Callable[[Path], None]) -> None:
    """Build a box for files, which are put into a folder of their own below the root; `on_done` receives it."""

    async def keep(event: events.UploadEventArguments) -> None:
        name = Path(event.file.name.replace("\\", "/")).name
        try:
            folder = studio.folders.named(TEXTS, "uploaded")
            place = studio.folders.resolve(folder / name)
            if place.parent != folder or name.startswith("."):
                raise ValueError(f"{name}: is no name of a file that can be kept; rename it")
            folder.mkdir(parents=True, exist_ok=True)
            await event.file.save(place)
        except (ValueError, OSError) as error:
            complain(error)
            return
        on_done(folder)

    def refuse() -> None:
        complain(ValueError(f"upload: expected at most {bytes_in_words(most_bytes)} and 200 files"))

    upload = ui.upload(
        multiple=True, max_file_size=most_bytes, max_files=200, auto_upload=True, label="Drop files here",
        on_upload=keep, on_rejected=refuse,
    )  # fmt: skip
    upload.classes("w-full").props("flat bordered")
