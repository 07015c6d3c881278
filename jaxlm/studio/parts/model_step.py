"""The third step: the model and its training. Presets as cards, with what they cost here, and the settings."""

from collections.abc import Callable

from nicegui import ui

from jaxlm.studio.parts.frame import bytes_in_words, card, count_in_words, pick, time_in_words
from jaxlm.studio.parts.settings_form import SettingsForm
from jaxlm.studio.processes.recipes import DOZEN, FIRST_SETTINGS
from jaxlm.studio.reading.plan import FIRST_CARDS, Card, preset_names, speed_here
from jaxlm.studio.reading.plan import card as preset_card
from jaxlm.studio.studio import Draft, Studio


class ModelStep:
    """The choice of the preset, and the form of the settings."""

    def __init__(self, studio: Studio, draft: Draft, changed: Callable[[], None]):
        self._studio, self._draft, self._changed = studio, draft, changed
        self._all = False
        with card("Model", "sizes for this text and this machine, before anything starts"):
            self._cards = ui.element("div").classes("cards")
            self._source = ui.label().classes("soft small")
            with ui.element("div").classes("line"):
                ui.button("All presets", on_click=self._show_all).props("flat dense")
                ui.button("Settings of the first training", on_click=self._reset).props("flat dense")
        with card("Training", "a question mark tells what a setting does"):
            self._form_box = ui.element("div").classes("w-full")
        self._show()
        self._build_form()

    def _build_form(self) -> None:
        self._form_box.clear()
        with self._form_box:
            SettingsForm(
                self._studio.settings,
                "train",
                self._draft.train,
                first=DOZEN,
                without=("preset",),
                words=lambda: list(self._studio.commands(self._draft)[1][-1].words),
                on_change=self._tuned,
            )

    def _tuned(self) -> None:
        self._changed()
        self._show()

    def _reset(self) -> None:
        self._draft.train.clear()
        self._draft.train |= {name: str(value) for name, value in FIRST_SETTINGS.items()}
        self._tuned()
        self._build_form()

    def _show_all(self) -> None:
        self._all = True
        self._show()

    def _show(self) -> None:
        chosen = self._draft.train.get("preset", "")
        names = (
            preset_names() if self._all else [*FIRST_CARDS, *([chosen] if chosen and chosen not in FIRST_CARDS else [])]
        )
        speed = speed_here(self._studio.runs.all(), chosen)
        self._source.text = f"Time: {speed.source}, without the compilation. Memory: an estimate for float32."
        self._cards.clear()
        with self._cards:
            for name in names:
                try:
                    found = card_of(self._studio, self._draft, name)
                except ValueError:
                    continue
                with pick(lambda name=name: self._choose(name), chosen=name == chosen):
                    ui.label(name).classes("title")
                    ui.label(_words(found)).classes("small")
                    memory = "" if found.memory_bytes is None else f"{bytes_in_words(found.memory_bytes)} memory, "
                    ui.label(f"{bytes_in_words(found.file_bytes)} file").classes("soft small")
                    ui.label(f"{memory}about {time_in_words(found.seconds)}").classes("soft small")

    def _choose(self, name: str) -> None:
        self._draft.train["preset"] = name
        self._tuned()

    @staticmethod
    def outlook(studio: Studio, draft: Draft) -> str:
        """Return what a draft costs, in one line; empty where its settings have no such numbers."""
        try:
            found = card_of(studio, draft, draft.train.get("preset", "ternary-tiny"))
        except ValueError:
            return ""
        parts = [
            f"{count_in_words(found.parameters)} parameters",
            f"{bytes_in_words(found.file_bytes)} file",
            f"{count_in_words(found.tokens)} tokens",
            f"about {time_in_words(found.seconds)}",
        ]
        return ", ".join(parts)


def card_of(studio: Studio, draft: Draft, name: str) -> Card:
    """Return the card of a preset with the settings of a draft. Raises ValueError where they are no numbers."""
    train = draft.train
    return preset_card(
        name,
        speed_here(studio.runs.all(), name),
        vocab_size=int(draft.vocab_size) if draft.vocab_size.isdigit() and not draft.tokenizer else 4096,
        batch_size=int(train.get("batch_size", "16")),
        seq_len=int(train.get("seq_len", "256")),
        steps=int(train.get("num_train_steps", "1000")),
    )


def _words(found: Card) -> str:
    share = f"{found.ternary:.0%} ternary" if found.ternary else "float"
    return f"{count_in_words(found.parameters)} parameters, {share}"
