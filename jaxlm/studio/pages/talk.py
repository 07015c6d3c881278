"""Talk to a run, a checkpoint or a model: chat, or a text that is continued."""

import random
from collections.abc import Mapping

from nicegui import ui

from jaxlm.studio.parts.frame import card, frame
from jaxlm.studio.processes.model_server import Choice, ModelServers, Talker, ask
from jaxlm.studio.reading.models import Model, find_models
from jaxlm.studio.reading.runs import Run
from jaxlm.studio.reading.shown_text import shown, shown_line
from jaxlm.studio.studio import Studio


def add_page(studio: Studio) -> None:
    """Add the page."""

    @ui.page("/talk")
    def page(model: str = "") -> None:
        with frame(studio, "Talk", "/talk"):
            talkers = talkers_of(studio)
            if not talkers:
                with card("Talk"):
                    ui.label("There is no model yet: train one, or put one below the root.")
                    ui.link("New model", "/")
                return
            first = next((name for name in talkers if model and name.startswith(model)), next(iter(talkers)))
            TalkPage(studio.servers, talkers, first)


def talkers_of(studio: Studio) -> dict[str, Talker]:
    """Return the models below the root by the names that a page shows: runs, their checkpoints, models."""
    found: dict[str, Talker] = {}
    for run in studio.runs.all():
        found |= _of_run(run)
    for model in find_models(studio.folders):
        found[shown_line(_name(model), 120)] = Talker(model.path)
    return found


def _of_run(run: Run) -> dict[str, Talker]:
    if run.kind == "finetune":
        return {run.name: Talker(run.path)} if (run.path / "adapters").is_dir() else {}
    steps = sorted(run.checkpoints, reverse=True)
    return {f"{shown_line(run.name, 100)}, step {step:,}": Talker(run.path, step) for step in steps}


def _name(model: Model) -> str:
    return f"{model.name} ({model.kind})"


class TalkPage:
    """A conversation with a chosen model."""

    def __init__(self, servers: ModelServers, talkers: Mapping[str, Talker], first: str):
        self._servers, self._talkers = servers, talkers
        self._stopped = False
        self._messages: list[dict[str, str]] = []
        with card("Talk"):
            with ui.element("div").classes("line"):
                self._model = ui.select(list(talkers), value=first, label="model or checkpoint", with_input=True)
                self._model.props("outlined dense").classes("grow").style("min-width: 220px")
                self._model.on_value_change(self._forget)
                self._mode = ui.toggle({"text": "continue a text", "chat": "chat"}, value="text")
                self._mode.props("dense no-caps unelevated").on_value_change(self._forget)
            self._settings()
        with card():
            self._talk = ui.element("div").style("display: flex; flex-direction: column; gap: 8px; min-height: 220px")
            with self._talk:
                ui.label(
                    "A model that was trained on texts continues them; one that was trained on chats answers."
                ).classes("soft")
            self._status = ui.label(" ").classes("soft small")
            self._text = ui.textarea("Write a begin, or a question").props("outlined autogrow").classes("w-full")
            self._text.on("keydown.ctrl.enter", self._say)
            with ui.element("div").classes("line"):
                self._send = ui.button("Send", icon="send", on_click=self._say).props("unelevated")
                self._stop = ui.button("Stop", icon="stop", on_click=self._halt).props("outline")
                ui.button("New", on_click=self._forget).props("flat")
                ui.label("Ctrl-Enter sends").classes("soft small")
            self._stop.disable()

    def _settings(self) -> None:
        with ui.element("div").classes("fields"):
            self._temperature = ui.number("temperature", value=0.8, min=0, step=0.1)
            self._top_p = ui.number("top-p", value=0.95, min=0.01, max=1, step=0.05)
            self._tokens = ui.number("tokens at most", value=160, min=1, max=4096, precision=0)
            self._seed = ui.number("seed (empty: another each time)", min=0, precision=0)
            for each in (self._temperature, self._top_p, self._tokens, self._seed):
                each.props("outlined dense")

    def _halt(self) -> None:
        self._stopped = True

    def _forget(self) -> None:
        self._stopped = True
        self._messages.clear()
        self._talk.clear()

    def _choice(self) -> Choice:
        seed = random.randrange(2**31) if self._seed.value is None else int(self._seed.value)
        given = (self._temperature.value, self._top_p.value, self._tokens.value)
        temperature, top_p, tokens = (
            default if value is None else value for value, default in zip(given, (0.8, 0.95, 160), strict=True)
        )
        return Choice(int(tokens), float(temperature), float(top_p), seed)

    async def _say(self) -> None:
        text, talker = self._text.value or "", self._talkers[self._model.value]
        is_chat = self._mode.value == "chat"
        if is_chat and not text.strip():
            return
        self._stopped = False
        self._send.disable()
        self._stop.enable()
        choice = self._choice()
        if not self._messages:
            self._talk.clear()
        answer, label = "", None
        try:
            self._status.text = "Opening the model ..." if not self._servers.is_open(talker) else "..."
            server = await self._servers.open(talker)
            if is_chat and not server.has_chat:
                raise ValueError("this model was not trained on chats: it continues texts")
            self._messages.append({"role": "user", "content": text})
            with self._talk:
                if is_chat:
                    ui.label(shown(text)).classes("said user")
                label = ui.label("").classes("said assistant")
            if is_chat:
                self._text.value = ""
            asked = list(self._messages) if is_chat else text
            start = "" if is_chat else text
            async for piece in ask(server, asked, choice):
                answer += piece
                label.text = shown(start + answer)
                if self._stopped:
                    break
            self._messages.append({"role": "assistant", "content": answer})
            self._status.text = f"seed {choice.seed}, {len(answer):,} characters" + (
                ", stopped" if self._stopped else ""
            )
        except (ValueError, OSError) as error:
            self._status.text = " "
            with self._talk:
                ui.label(shown(str(error), 600)).classes("said bad")
            if self._messages and self._messages[-1]["role"] == "user":
                self._messages.pop()
        finally:
            self._send.enable()
            self._stop.disable()
