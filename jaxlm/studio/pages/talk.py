"""Talk to a run, a checkpoint or a model: chat, or a text that is continued."""

import asyncio
import contextlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nicegui import ui

from jaxlm.studio.parts.frame import card, frame
from jaxlm.studio.processes.model_server import Choice, ModelServers, Talker, ask
from jaxlm.studio.reading.models import Model, find_models
from jaxlm.studio.reading.runs import Run
from jaxlm.studio.reading.shown_text import shown, shown_line
from jaxlm.studio.studio import Studio

MODES: Mapping[str, str] = {"text": "continue a text", "chat": "chat"}
# The first words on the page and the name of the field, by what may be chosen.
_WORDS = {
    ("text",): ("This model continues texts. Much of what it writes is made up.", "Write a beginning"),
    ("text", "chat"): (
        "A model that was trained on texts continues them; one that was trained on chats answers.",
        "Write a beginning, or a question",
    ),
    ("chat", "text"): (
        "This model answers, and it continues texts. Much of what it writes is made up.",
        "Write a question, or a beginning",
    ),
}
# Seconds between two looks at the line.
_LOOK_SECONDS = 0.2


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


@dataclass(frozen=True)
class TalkLimits:
    """Bounds of what may be asked."""

    prompt_chars: int = 1_000_000
    tokens: int = 4096


class TalkPage:
    """A conversation with a model, chosen where there are several."""

    def __init__(
        self,
        servers: ModelServers,
        talkers: Mapping[str, Talker],
        first: str,
        *,
        limits: TalkLimits = TalkLimits(),
        modes: Sequence[str] = tuple(MODES),
        is_folded: bool = False,
    ):
        self._servers, self._talkers, self._limits = servers, talkers, limits
        self._model, self._mode = first, modes[0]
        self._messages: list[dict[str, str]] = []
        self._work: asyncio.Task[str] | None = None
        """The answer that is waited for."""
        if len(talkers) > 1 or len(modes) > 1:
            self._choices(modes)
        hint, name = _WORDS[tuple(modes)]
        with card():
            self._talk = ui.element("div").style("display: flex; flex-direction: column; gap: 8px; min-height: 220px")
            with self._talk:
                ui.label(hint).classes("soft")
            self._status = ui.label(" ").classes("soft small")
            self._text = ui.textarea(name)
            self._text.props(f"outlined autogrow maxlength={limits.prompt_chars}").classes("w-full")
            self._text.on("keydown.ctrl.enter", self._say)
            with ui.element("div").classes("line"):
                self._send = ui.button("Send", icon="send", on_click=self._say).props("unelevated")
                self._stop = ui.button("Stop", icon="stop", on_click=self._halt).props("outline")
                ui.button("New", on_click=self._forget).props("flat")
                ui.label("Ctrl-Enter sends").classes("soft small")
            self._stop.disable()
            with ui.expansion("Settings", value=not is_folded).classes("w-full").props("dense"):
                self._settings()
        ui.context.client.on_delete(self._halt)  # nobody reads the answer any more

    def _choices(self, modes: Sequence[str]) -> None:
        with card(), ui.element("div").classes("line"):
            if len(self._talkers) > 1:
                model = ui.select(list(self._talkers), value=self._model, label="model or checkpoint", with_input=True)
                model.props("outlined dense").classes("grow").style("min-width: 220px")
                model.bind_value_to(self, "_model").on_value_change(self._forget)
            if len(modes) > 1:
                mode = ui.toggle({name: MODES[name] for name in modes}, value=self._mode)
                mode.props("dense no-caps unelevated").bind_value_to(self, "_mode").on_value_change(self._forget)

    def _settings(self) -> None:
        with ui.element("div").classes("fields narrow"):
            self._temperature = ui.number("temperature", value=0.8, min=0, max=2, step=0.1)
            self._top_p = ui.number("top-p", value=0.95, min=0.01, max=1, step=0.05)
            most = self._limits.tokens
            self._tokens = ui.number("tokens at most", value=min(160, most), min=1, max=most, precision=0)
            self._seed = ui.number("seed (empty: any)", min=0, precision=0)
            self._end = ui.input("stop at", placeholder="\\n is a line end")
            for each in (self._temperature, self._top_p, self._tokens, self._seed, self._end):
                each.props("outlined dense")

    def _halt(self) -> None:
        if self._work is not None:
            self._work.cancel()

    def _forget(self) -> None:
        self._halt()
        self._messages = []
        self._talk.clear()
        self._status.text = " "

    def _choice(self) -> Choice:
        """Return the settings of the fields. Raises ValueError on what a page would not send."""
        seed = random.randrange(2**31) if self._seed.value is None else int(self._seed.value)
        given = (self._temperature.value, self._top_p.value, self._tokens.value)
        temperature, top_p, tokens = (
            default if value is None else float(value) for value, default in zip(given, (0.8, 0.95, 160), strict=True)
        )
        if not 1 <= tokens <= self._limits.tokens:
            raise ValueError(f"tokens: found {tokens:g}, expected 1 to {self._limits.tokens:,}")
        end = str(self._end.value or "").replace("\\n", "\n")
        return Choice(int(tokens), temperature, top_p, seed, (end,) if end else ())

    async def _say(self) -> None:
        text, is_chat = str(self._text.value or ""), self._mode == "chat"
        if self._work is not None or (is_chat and not text.strip()):
            return
        self._send.disable()
        self._stop.enable()
        try:
            self._work = asyncio.create_task(self._answer(text, is_chat))
            self._status.text = await self._work
        except asyncio.CancelledError:
            self._status.text = "stopped"
        except (ValueError, TypeError, OSError) as error:
            self._status.text = " "
            with self._talk:
                ui.label(shown(str(error), 600)).classes("said bad")
        finally:
            self._work = None
            self._send.enable()
            self._stop.disable()

    async def _answer(self, text: str, is_chat: bool) -> str:
        """Show a text and the answer to it; return a line about it. Raises ValueError where there is none."""
        messages, talker, choice = self._messages, self._talkers[self._model], self._choice()
        if len(text) > self._limits.prompt_chars:
            raise ValueError(f"text: found {len(text):,} characters, expected at most {self._limits.prompt_chars:,}")
        self._status.text = "..." if self._servers.is_open(talker) else "Opening the model ..."
        server = await asyncio.shield(self._servers.open(talker))  # a start that is begun is finished
        if is_chat and not server.has_chat:
            raise ValueError("this model was not trained on chats: it continues texts")
        with server.line.place() as people_before:
            while before := people_before():
                self._status.text = f"{before} before you"
                await asyncio.sleep(_LOOK_SECONDS)
            self._status.text = "..."
            box = self._show(text, is_chat, is_first=not messages)
            with box:
                label = ui.label("")
            asked = [*messages, {"role": "user", "content": text}]
            answer, is_stopped = "", False
            try:
                async with contextlib.aclosing(ask(server, asked if is_chat else text, choice)) as pieces:
                    async for piece in pieces:
                        answer += piece
                        label.text = shown(answer)
            except asyncio.CancelledError:
                is_stopped = True
            except ValueError:
                if not answer:
                    box.delete()
                raise
        messages += [asked[-1], {"role": "assistant", "content": answer}]
        return f"seed {choice.seed}, {len(answer):,} characters" + (", stopped" if is_stopped else "")

    def _show(self, text: str, is_chat: bool, *, is_first: bool) -> ui.element:
        """Show a text, and return the box for the answer to it, or for how it goes on."""
        if is_first:
            self._talk.clear()
        with self._talk:
            if is_chat:
                self._text.value = ""
                ui.label(shown(text)).classes("said user")
            with ui.element("div").classes("said assistant") as box:
                if not is_chat:
                    ui.label(shown(text)).classes("begin")
        return box
