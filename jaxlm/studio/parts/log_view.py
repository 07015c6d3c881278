"""Logs and jobs on a page: lines as they come, mistakes in red, commands to copy."""

from collections.abc import Callable
from pathlib import Path

from nicegui import ui

from jaxlm.studio.parts.frame import attempt, chip, command_lines
from jaxlm.studio.processes.jobs import Job
from jaxlm.studio.reading.log_tail import LogTail, last_error, last_line
from jaxlm.studio.reading.shown_text import shown_line

_CLASSES = {"plain": "mono", "error": "mono bad", "warning": "mono soft", "command": "mono soft"}
_MOST_LINES = 300


class LogView:
    """A box with the last lines of a file, which `refresh` brings up to date."""

    def __init__(self, path: Path):
        self.path = path
        self._tail = LogTail(path)
        self._log = ui.log(max_lines=_MOST_LINES).classes("log").props('tabindex=0 aria-label="log"')
        self.refresh()

    def refresh(self) -> None:
        """Add the lines that were written since."""
        for line in self._tail.more()[-_MOST_LINES:]:
            self._log.push(line.text or " ", classes=_CLASSES[line.kind])


class JobBox:
    """A job with its state, its log and its command line, folded where it is over and went well.

    `answer` is how a line of the log begins that is all that was asked for: with it the job is done, also where its
    exit status says that two things differ.
    """

    def __init__(self, job: Job, on_end: Callable[[], None] = lambda: None, answer: str | None = None):
        self.job, self._on_end, self._begin = job, on_end, answer
        self._state = job.state
        with ui.expansion(value=self._state != "done").classes("w-full card").props("dense") as self._box:
            with self._box.add_slot("header"), ui.element("div").classes("line"):
                self._chip = chip(self._state)
                ui.label(shown_line(f"{job.record['kind']}: {job.record['title']}", 200))
            self._answer = ui.label().classes("mono")
            self._error = ui.label().classes("bad mono")
            self._view = LogView(job.log)
            command_lines(job.lines)
            self._stop = ui.button("Stop", on_click=attempt(job.stop)).props("flat dense")
        self._show()

    def refresh(self) -> None:
        """Bring log and state up to date."""
        self._view.refresh()
        state = self.job.state
        if state != self._state:
            self._chip.classes(remove=self._state)
            self._state = state
            self._show()
            self._on_end()

    def _show(self) -> None:
        is_over = self._state in ("done", "failed")
        answer = None if self._begin is None or not is_over else last_line(self.job.log, self._begin)
        state = self._state if answer is None else "done"
        self._chip.classes(remove=self._state, add=state)
        self._chip.text, self._answer.text = state, answer or ""
        self._stop.set_visibility(state == "running")
        self._error.text = (last_error(self.job.log) or "") if state == "failed" else ""
