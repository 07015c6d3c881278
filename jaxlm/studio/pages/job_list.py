"""All jobs that were started here, the newest first, with their logs."""

from nicegui import ui

from jaxlm.studio.parts.frame import card, frame
from jaxlm.studio.parts.log_view import JobBox
from jaxlm.studio.studio import Studio

_SECONDS = 2.0
_MOST = 40


def add_page(studio: Studio) -> None:
    """Add the page."""

    @ui.page("/jobs")
    def page() -> None:
        with frame(studio, "Jobs", "/jobs"):
            jobs = studio.jobs.all()
            with card("Jobs", "commands that were started here; each is a process of its own"):
                if not jobs:
                    ui.label("None yet.").classes("soft")
            boxes = [JobBox(job) for job in jobs[:_MOST]]

            def refresh() -> None:
                for box in boxes:
                    box.refresh()

            ui.timer(_SECONDS, refresh)
