"""One run, live: numbers, curves, health, samples, log, and what can be done with it."""

from pathlib import Path

from nicegui import ui

from jaxlm.studio.parts.frame import (
    attempt,
    bytes_in_words,
    card,
    chip,
    command_lines,
    frame,
    number,
    time_in_words,
)
from jaxlm.studio.parts.log_view import JobBox, LogView
from jaxlm.studio.parts.run_actions import RunActions
from jaxlm.studio.parts.run_curves import RunCurves
from jaxlm.studio.processes.jobs import Job
from jaxlm.studio.reading.log_tail import last_error
from jaxlm.studio.reading.process_memory import memory_bytes
from jaxlm.studio.reading.runs import Run, settings_file, write_notes
from jaxlm.studio.reading.samples import Sample, read_samples, samples_stamp
from jaxlm.studio.reading.shown_text import shown, shown_line
from jaxlm.studio.studio import Studio

_SECONDS = 1.5
_NUMBERS = (
    "step",
    "loss",
    "held-out",
    "bits per byte",
    "tokens/s",
    "learning rate",
    "zeros",
    "flips",
    "memory",
    "left",
)


def add_page(studio: Studio) -> None:
    """Add the page."""

    @ui.page("/run")
    def page(path: str = "") -> None:
        with frame(studio, shown_line(path, 60), "/runs"):
            try:
                place = studio.folders.resolve(path)
                if settings_file(place) is None and studio.job_of(place) is None:
                    raise ValueError(f"{path}: found no run there")
            except ValueError as error:
                with card("No such run"):
                    ui.label(shown(str(error), 400)).classes("bad")
                return
            RunPage(studio, place)


class RunPage:
    """The page of a run, which may still wait for its text to be prepared."""

    def __init__(self, studio: Studio, place: Path):
        self._studio, self._place = studio, place
        self._job_boxes: dict[str, JobBox] = {}
        self._shown: tuple[str, bool] | None = None
        self._log_path, self._samples = Path(), list[Sample]()
        self._samples_stamp: tuple[int, int] | None = None
        self._head()
        self._curves = RunCurves(studio, place)
        with ui.element("div").classes("two"):
            with card("Samples", "texts that the model wrote on its way"):
                self._step = ui.select([], label="step").props("outlined dense").style("min-width: 130px")
                self._step.on_value_change(lambda: self._show_sample())
                self._text = ui.label("There is no sample yet.").classes("mono log")
            with card("Log"):
                self._log_box = ui.element("div").classes("w-full")
        self._notes()
        with card("Evaluations and conversions") as self._jobs_card:
            self._jobs = ui.element("div").classes("w-full").style("display: flex; flex-direction: column; gap: 8px")
            self._no_jobs = ui.label("None yet.").classes("soft small")
        self._refresh()
        ui.timer(_SECONDS, self._refresh)

    def _head(self) -> None:
        with ui.element("section").classes("card"):
            with ui.element("div").classes("line"):
                ui.label(shown_line(self._studio.folders.short(self._place), 120)).classes("title")
                self._chip = chip("")
                self._about = ui.label().classes("soft small")
            self._error = ui.label().classes("bad mono")
            self._progress = ui.linear_progress(0, show_value=False, size="8px").props("rounded instant-feedback")
            self._progress.props('aria-label="progress"')
            with ui.element("div").classes("numbers"):
                self._numbers = {name: number(name) for name in _NUMBERS}
            self._actions = RunActions(self._studio, self._place)
            self._lines = ui.element("div").classes("w-full")

    def _run(self) -> Run | None:
        return self._studio.runs.read(self._place) if settings_file(self._place) is not None else None

    def _refresh(self) -> None:
        run, job = self._run(), self._studio.job_of(self._place)
        self._show_state(run, job)
        if run is not None:
            self._show_numbers(run)
            self._curves.refresh(run)
            self._refresh_samples()
        self._refresh_log(job)
        self._refresh_jobs()

    def _show_state(self, run: Run | None, job: Job | None) -> None:
        state = run.state if run is not None else "unreadable"
        if job is not None and job.state != "done" and state != "training" and not (run and run.state == "done"):
            # Of a run that has not begun, its job knows more; of one that trains, the run does.
            state = "preparing" if job.state == "running" else job.state
        if state == "killed" and run is not None:
            state = "stopped"
        has_checkpoint = run is not None and bool(run.checkpoints)
        if (state, has_checkpoint) == self._shown:
            return
        self._shown = (state, has_checkpoint)
        self._chip.classes(replace=f"chip {'running' if state == 'preparing' else state}")
        self._chip.text = state
        self._error.text = (last_error(job.log) or "") if job is not None and state == "failed" else ""
        self._actions.show(state, run)
        self._lines.clear()
        with self._lines:
            if job is not None:
                command_lines(job.lines)

    def _show_numbers(self, run: Run) -> None:
        latest = run.latest
        steps = run.steps or 0
        self._about.text = f"{shown_line(run.model, 80)}, seed {run.settings.get('seed', 0)}"
        self._progress.value = min(1.0, run.step / steps) if steps else 0.0
        pid = run.process
        memory = None if pid is None else memory_bytes(pid)
        texts = {
            "step": f"{run.step:,} / {steps:,}" if steps else f"{run.step:,}",
            "loss": _form(latest.get("train/loss"), "{:.4f}"),
            "held-out": _form(latest.get("val/loss"), "{:.4f}"),
            "bits per byte": _form(latest.get("val/bits_per_byte"), "{:.4f}"),
            "tokens/s": _form(latest.get("perf/tokens_per_second"), "{:,.0f}"),
            "learning rate": _form(latest.get("train/learning_rate"), "{:.2e}"),
            "zeros": _form(latest.get("ternary/zero_fraction"), "{:.1%}"),
            "flips": _form(latest.get("ternary/flip_rate"), "{:.3%}"),
            "memory": "-" if memory is None else bytes_in_words(memory),
            "left": time_in_words(run.seconds_left),
        }
        for name, text in texts.items():
            self._numbers[name].text = text

    def _refresh_samples(self) -> None:
        stamp = samples_stamp(self._place)
        if stamp is None or stamp == self._samples_stamp:
            return
        self._samples_stamp, samples = stamp, read_samples(self._place)
        if not samples:
            return
        follows = not self._samples or self._step.value == self._samples[-1].step
        self._samples = samples
        self._step.set_options([sample.step for sample in samples])
        if follows:
            self._step.value = samples[-1].step
        self._show_sample()

    def _show_sample(self) -> None:
        found = [sample.text for sample in self._samples if sample.step == self._step.value]
        if found:
            self._text.text = found[0]

    def _refresh_log(self, job: Job | None) -> None:
        path = self._place / "run.log" if job is None else job.log
        if path != self._log_path:
            self._log_path = path
            self._log_box.clear()
            with self._log_box:
                self._log = LogView(path)
        self._log.refresh()

    def _refresh_jobs(self) -> None:
        jobs = [job for job in self._studio.jobs.of(self._place) if job.record["kind"] not in ("train", "serve")]
        self._no_jobs.set_visibility(not jobs)
        for job in reversed(jobs):
            if job.name not in self._job_boxes:
                with self._jobs:
                    box = JobBox(job)
                self._job_boxes[job.name] = box
                box._box.move(target_index=0)
        for box in self._job_boxes.values():
            box.refresh()

    def _notes(self) -> None:
        run = self._run()
        tags, note = (run.tags, run.note) if run is not None else ((), "")
        with card("Tags and notes"), ui.element("div").classes("line"):
            words = ui.input("tags, with commas", value=", ".join(tags)).props("outlined dense").classes("grow")
            text = ui.input("note", value=note).props("outlined dense").classes("grow").style("flex-grow: 3")

            def keep() -> None:
                if self._run() is None:
                    raise ValueError("note: the run has not begun yet; write it when it trains")
                write_notes(self._place, (words.value or "").split(","), text.value or "")
                ui.notify("kept", timeout=900)

            ui.button("Keep", on_click=attempt(keep)).props("flat")


def _form(value: object, form: str) -> str:
    return form.format(value) if isinstance(value, int | float) else "-"
