"""The path to a new model: text, tokenizer, model and training, talk, on one line; one click trains."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from nicegui import ui

from jaxlm.studio.parts.frame import frame, pick
from jaxlm.studio.parts.model_step import ModelStep
from jaxlm.studio.parts.start_bar import StartBar
from jaxlm.studio.parts.text_step import TextStep
from jaxlm.studio.parts.tokenizer_step import TokenizerStep
from jaxlm.studio.processes.recipes import STDLIB
from jaxlm.studio.reading.shown_text import shown_line
from jaxlm.studio.studio import Draft, Studio

STEPS = ("Text", "Tokenizer", "Model", "Talk")


def add_page(studio: Studio, most_bytes: int) -> None:
    """Add the page."""

    @ui.page("/")
    def page(step: int = 0) -> None:
        with frame(studio, "New model", "/"):
            _at_work(studio)
            PathPage(studio, studio.draft(), most_bytes, step if 0 <= step < 3 else 0)


def _at_work(studio: Studio) -> None:
    """Show what trains now."""
    running = [each for each in studio.runs.all() if each.state == "training"]
    if running:
        with ui.element("div").classes("line"):
            ui.label("Training now:").classes("soft")
            for each in running[:6]:
                ui.link(each.name, f"/run?path={each.name}").classes("chip training")


class PathPage:
    """The four steps and the bar that starts the run."""

    def __init__(self, studio: Studio, draft: Draft, most_bytes: int, step: int):
        self._studio, self._draft, self._most_bytes = studio, draft, most_bytes
        self._step = step
        self._buttons: list[ui.element] = []
        self._summaries: list[ui.label] = []
        self._build_steps()
        with ui.element("section").classes("card"):
            self._bar = StartBar(studio, draft, self._changed, button="Train", outlook=self._outlook)
        self._panel = ui.element("div").classes("stack")
        self._show(step)

    def _changed(self) -> None:
        self._studio.keep(self._draft)
        self._bar.describe()
        self._headings()

    def _outlook(self) -> str:
        return ModelStep.outlook(self._studio, self._draft)

    def _build_steps(self) -> None:
        with ui.element("nav").classes("steps").props('aria-label="Steps"'):
            for index, title in enumerate(STEPS):
                with pick(partial(self._show, index)) as button:
                    ui.label(f"{index + 1}  {title}").classes("title")
                    self._summaries.append(ui.label().classes("soft small summary"))
                self._buttons.append(button)

    def _headings(self) -> None:
        """Write the summaries of the steps. The buttons stay, so that a click during a change is not lost."""
        summaries = (self._text_words(), self._tokenizer_words(), self._model_words(), "with any checkpoint")
        for index, summary in enumerate(summaries):
            self._summaries[index].text = summary
            is_here = index == self._step
            self._buttons[index].classes(replace="pick chosen" if is_here else "pick")
            self._buttons[index].props(f'aria-current="{"step" if is_here else "false"}"')

    def _text_words(self) -> str:
        draft = self._draft
        if draft.data_dir:
            return shown_line(", ".join(draft.data_dir), 60)
        if draft.hub:
            return shown_line(draft.hub, 60)
        if draft.input == [STDLIB]:
            return "Python's own library"
        return shown_line(", ".join(Path(name).name for name in draft.input), 60)

    def _tokenizer_words(self) -> str:
        draft = self._draft
        if draft.data_dir:
            return "of the shards"
        return f"of {shown_line(draft.tokenizer, 50)}" if draft.tokenizer else f"new, {draft.vocab_size} tokens"

    def _model_words(self) -> str:
        train = self._draft.train
        model = train.get("preset") or (
            f"goes on from {train['init_from']}" if "init_from" in train else "ternary-tiny"
        )
        return f"{model}, {train.get('num_train_steps', '1000')} steps"

    def _show(self, index: int) -> None:
        if index == 3:
            ui.navigate.to("/talk")
            return
        self._step = index
        self._headings()
        self._panel.clear()
        makers: tuple[Callable[[], object], ...] = (
            lambda: TextStep(self._studio, self._draft, self._changed, self._most_bytes),
            lambda: TokenizerStep(self._studio, self._draft, self._changed),
            lambda: ModelStep(self._studio, self._draft, self._changed),
        )
        with self._panel:
            makers[index]()
