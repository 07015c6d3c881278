"""Actions on a run: stop and save, kill, continue, other settings, talk, fine-tune, evaluate, convert."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from nicegui import ui

from jaxlm.studio.parts.folder_picker import FolderPicker
from jaxlm.studio.parts.frame import attempt, command_lines, complain
from jaxlm.studio.parts.settings_form import SettingsForm
from jaxlm.studio.processes.jobs import Command
from jaxlm.studio.processes.recipes import (
    FINETUNE,
    STDLIB,
    convert_command,
    evaluate_command,
    model_place,
    resume_command,
    trainer_of,
)
from jaxlm.studio.processes.settings_check import to_words
from jaxlm.studio.reading.folders import MODELS, free_name, plain_name
from jaxlm.studio.reading.runs import Run, settings_file, settings_to_take
from jaxlm.studio.studio import Studio

FORMS = {
    "packed": "packed: an artifact of ternary codes in 2 bits",
    "latent": "latent: float weights that training can go on from",
    "dequantized": "dequantized: floats for transformers",
    "mlx": "mlx: for stock mlx-lm",
    "gguf": "gguf: a file for llama.cpp",
}
# What `prepare` holds out unless told otherwise, so no run has trained on it.
_HELD_OUT = "0.05"
_CONTINUED = ("optimizer.learning_rate", "eval_every_steps", "sample_every_steps", "checkpoint_every_steps")


class RunActions:
    """The buttons of a run. `show` puts those out that its state allows."""

    def __init__(self, studio: Studio, place: Path):
        self._studio, self._place = studio, place
        name = quote(studio.folders.short(place))
        with ui.element("div").classes("line"):
            self._stop = ui.button("Stop and save", icon="save", on_click=self._stop_and_save).props("unelevated")
            self._kill = ui.button("Kill", icon="close", on_click=self._ask_kill).props("outline color=negative")
            self._continue = ui.button("Continue", icon="play_arrow", on_click=self._ask_steps).props("unelevated")
            self._talk = ui.button("Talk", icon="chat", on_click=lambda: ui.navigate.to(f"/talk?model={name}"))
            self._talk.props("outline")
            self._tune = ui.button(
                "Fine-tune", icon="tune", on_click=lambda: ui.navigate.to(f"/finetune?model={name}")
            ).props("outline")
            self._fork = ui.button("Other settings", icon="call_split", on_click=self._ask_fork).props("outline")
            self._evaluate = ui.button("Evaluate", icon="straighten", on_click=self._ask_text).props("outline")
            self._convert = ui.button("Convert", icon="swap_horiz", on_click=self._ask_form).props("outline")

    def show(self, state: str, run: Run | None) -> None:
        """Show the buttons of a state."""
        works = state in ("training", "preparing", "running")
        has_checkpoint = run is not None and (bool(run.checkpoints) or run.kind == "finetune")
        self._stop.set_visibility(works)
        self._stop.text = "Stop and save" if state == "training" else "Stop"
        self._kill.set_visibility(works)
        self._continue.set_visibility(not works and run is not None)
        self._tune.set_visibility(not works and run is not None and run.has_model)
        for button in (self._talk, self._fork, self._evaluate, self._convert):
            button.set_visibility(has_checkpoint)

    async def _stop_and_save(self) -> None:
        """Stop after the current batch, wait until the run is saved, then ask for a name."""
        try:
            self._studio.stop(self._place)
        except (ValueError, OSError) as error:
            complain(error)
            return
        with ui.dialog().props("persistent") as dialog, ui.card():
            with ui.element("div").classes("line"):
                ui.spinner(size="sm")
                ui.label("The batch is finished and the run is saved.")
            ui.button("Do not wait", on_click=dialog.close).props("flat")
        dialog.open()
        while self._is_at_work() and dialog.value:
            await asyncio.sleep(0.3)
        if not dialog.value:
            return
        dialog.close()
        if settings_file(self._place) is not None and self._studio.runs.read(self._place).checkpoints:
            self._ask_form(title="Saved. Keep the model under a name?")

    def _is_at_work(self) -> bool:
        job = self._studio.job_of(self._place)
        is_training = settings_file(self._place) is not None and (
            self._studio.runs.read(self._place).state == "training"
        )
        return is_training or (job is not None and job.state == "running")

    def _ask_kill(self) -> None:
        with ui.dialog() as dialog, ui.card():
            ui.label("Kill the run?").classes("title")
            ui.label("What it learned since its last checkpoint is lost. Stop and save keeps it.")

            def kill() -> None:
                dialog.close()
                self._studio.kill(self._place)

            with ui.element("div").classes("line"):
                ui.button("Kill", on_click=attempt(kill)).props("unelevated color=negative")
                ui.button("Keep it", on_click=dialog.close).props("flat")
        dialog.open()

    def _ask_steps(self) -> None:
        run = self._studio.runs.read(self._place)
        values: dict[str, str] = {}
        left = (run.steps or 0) - run.step
        with ui.dialog() as dialog, ui.card().classes("w-full").style("max-width: 760px"):
            ui.label("Continue").classes("title")
            if left > 0:
                ui.label(f"{left:,} of {run.steps or 0:,} steps are left; more are added to them.").classes("soft")
            more = ui.input("more steps", value="0" if left > 0 else "500").props("outlined dense")

            def words() -> list[str]:
                typed = str(more.value).strip()
                if not typed.isdigit():
                    raise ValueError(f"more steps: found {typed!r}, expected a whole number")
                steps = {} if typed == "0" else {"num_train_steps": str((run.steps or run.step) + int(typed))}
                return list(resume_command(run, values | steps, self._studio.folders).words)

            form = SettingsForm(
                self._studio.settings,
                trainer_of(run),
                values,
                first=_CONTINUED,
                words=words,
                only_resumable=True,
            )

            async def go() -> None:
                try:
                    command = Command(trainer_of(run), tuple(words()))
                except ValueError as error:
                    complain(error)
                    return
                if await form.check() is None:
                    dialog.close()
                    self._start("train", f"continue {self._place.name}", [command])

            with ui.element("div").classes("line"):
                ui.button("Continue", on_click=go).props("unelevated")
                ui.button("Cancel", on_click=dialog.close).props("flat")
        dialog.open()

    def _ask_fork(self) -> None:
        """Take the settings and the last checkpoint of the run for a new one; of a fine-tuning its model and text."""
        run = self._studio.runs.read(self._place)
        if run.kind == "finetune":
            draft = self._studio.draft(FINETUNE)
            cwd, settings = self._studio.cwd, run.settings
            draft.train = settings_to_take(run) | {"model": str(cwd / str(settings.get("model", "")))}
            draft.input, draft.name = [str(cwd / str(each)) for each in settings.get("data") or []], ""
            self._studio.keep(draft)
            ui.navigate.to("/finetune")
            return
        draft = self._studio.draft()
        draft.train = settings_to_take(run)
        draft.train["init_from"] = self._studio.folders.short(self._place)
        draft.name = ""
        data = run.settings.get("data_dir")
        if isinstance(data, list) and data:
            draft.data_dir = [str(each) for each in data]
        self._studio.keep(draft)
        ui.navigate.to("/?step=2")

    def _ask_text(self) -> None:
        chosen = [STDLIB]
        with ui.dialog() as dialog, ui.card().classes("w-full"):
            ui.label("Evaluate on which text?").classes("title")
            label = ui.label(STDLIB).classes("mono")

            def take(path: Path) -> None:
                chosen[:] = [str(path)]
                label.text, share.value = chosen[0], ""

            picker = FolderPicker(self._studio.folders, take)
            share = ui.input("share of the documents, as prepare holds them out; empty for all", value=_HELD_OUT)
            share.props("outlined dense").classes("w-full")

            def go() -> None:
                report = self._studio.folders.state / f"evaluation-{plain_name(self._place.name)}.json"
                command = evaluate_command([self._place], chosen, self._studio.folders, report)
                words = (*command.words, *to_words({"held_out": (share.value or "").strip()}))
                dialog.close()
                self._start("evaluate", " ".join(chosen), [Command("evaluate", words)])

            with ui.element("div").classes("line"):
                ui.button("Evaluate", on_click=attempt(go)).props("unelevated")
                ui.button("Another text", on_click=picker.open).props("flat")
                ui.button("Cancel", on_click=dialog.close).props("flat")
        dialog.open()

    def _ask_form(self, title: str = "Convert the newest checkpoint") -> None:
        folders = self._studio.folders
        with ui.dialog() as dialog, ui.card().classes("w-full"):
            ui.label(title).classes("title")
            name = ui.input("Name of the model", value=free_name(folders.root / MODELS, plain_name(self._place.name)))
            name.props("outlined dense").classes("w-full")
            form = ui.select(FORMS, value="packed", label="form").props("outlined dense").classes("w-full")
            lines = ui.element("div").classes("w-full")

            def typed() -> str:
                return (name.value or "").strip()

            def command() -> Command:
                return convert_command(self._place, model_place(typed(), form.value, folders), form.value)

            def show() -> None:
                lines.clear()
                name.error = None
                with lines:
                    try:
                        command_lines([command().line])
                    except ValueError as error:
                        ui.label(str(error)).classes("bad small")

            def go() -> None:
                (folders.root / MODELS).mkdir(exist_ok=True)
                made = command()
                dialog.close()
                self._start("convert", f"to {form.value}: {(name.value or '').strip()}", [made])

            name.on_value_change(show)
            form.on_value_change(show)
            show()
            with ui.element("div").classes("line"):
                ui.button("Make the model", on_click=attempt(go)).props("unelevated")
                ui.button("Not now", on_click=dialog.close).props("flat")
        dialog.open()

    def _start(self, kind: str, title: str, commands: Sequence[Command]) -> None:
        try:
            self._studio.jobs.start(kind, title, self._place, commands, cwd=self._studio.cwd)
        except OSError as error:
            complain(error)
