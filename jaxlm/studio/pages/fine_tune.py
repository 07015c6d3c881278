"""Fine-tune a model below the root with MLX: the model, a text or chats, settings, and one click."""

from collections.abc import Mapping
from dataclasses import replace

from nicegui import ui

from jaxlm.studio.parts.frame import card, frame
from jaxlm.studio.parts.settings_form import SettingsForm
from jaxlm.studio.parts.start_bar import StartBar
from jaxlm.studio.parts.text_step import READING, TextStep
from jaxlm.studio.processes.recipes import FINETUNE
from jaxlm.studio.reading.folders import TEXTS
from jaxlm.studio.reading.models import find_models
from jaxlm.studio.reading.shown_text import shown_line
from jaxlm.studio.studio import Studio

# Settings that matter first; the others are folded.
_FIRST = ("method", "objective", "num_train_steps", "batch_size", "seq_len", "optimizer.learning_rate")


def add_page(studio: Studio, most_bytes: int) -> None:
    """Add the page. `model` is a model, or a run that holds one."""

    @ui.page("/finetune")
    def page(model: str = "") -> None:
        with frame(studio, "Fine-tune", "/finetune"):
            models = {each.name: shown_line(f"{each.name} ({each.kind})", 120) for each in find_models(studio.folders)}
            if not models:
                with card("Fine-tune"):
                    ui.label("There is no model yet: train one to its end, or put one into models/.")
                    ui.link("New model", "/")
                return
            FineTunePage(studio, models, model, most_bytes)


class FineTunePage:
    """The choice of the model and of the text, the settings of `mlxlm finetune`, and the bar that starts it."""

    def __init__(self, studio: Studio, models: Mapping[str, str], asked: str, most_bytes: int):
        self._studio, self._draft = studio, studio.draft(FINETUNE)
        wanted = asked or self._draft.train.get("model", "")
        found = self._find(models, wanted)
        self._draft.train["model"] = found or next(iter(models))
        with card("Fine-tune", "train a model further on a text or on chats, with MLX"):
            if wanted and found is None:
                ui.label(f"{shown_line(wanted, 120)}: found no whole model there; choose another one.").classes("bad")
            chosen = ui.select(dict(models), value=self._draft.train["model"], label="model", with_input=True)
            chosen.props("outlined dense").classes("w-full")
            chosen.on_value_change(lambda event: self._choose(event.value))
            self._bar = StartBar(studio, self._draft, self._changed, button="Fine-tune")
        TextStep(studio, self._draft, self._changed, most_bytes)
        with card("Settings", "a question mark tells what a setting does; an empty field takes the default"):
            SettingsForm(
                studio.settings,
                FINETUNE,
                self._draft.train,
                first=_FIRST,
                without=("model", "data", *READING),
                words=self._words,
                on_change=self._changed,
            )

    def _find(self, models: Mapping[str, str], wanted: str) -> str | None:
        """Return the model at a place or below it, None where there is none."""
        folders = self._studio.folders
        try:
            place = folders.resolve(wanted)
        except ValueError:
            return None
        return next((name for name in models if wanted and (folders.root / name).is_relative_to(place)), None)

    def _choose(self, model: str | None) -> None:
        if model:
            self._draft.train["model"] = model
            self._changed()

    def _words(self) -> list[str]:
        """Return the words that are checked. Before a text is chosen, another path stands for it."""
        draft = replace(self._draft, input=self._draft.input or [TEXTS])
        return list(self._studio.commands(draft)[1][-1].words)

    def _changed(self) -> None:
        self._studio.keep(self._draft)
        self._bar.describe()
