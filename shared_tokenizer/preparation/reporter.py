"""The interface through which a preparation tells its progress."""

from typing import Protocol

from shared_tokenizer.preparation.summary import Summary


class Reporter(Protocol):
    """Receives the messages and the progress of a preparation."""

    def log(self, line: str) -> None:
        """Print one line for the user."""
        ...

    def show_progress(self, done: int, total: int, so_far: Summary) -> None:
        """Show that `done` of `total` slices are finished. Called before the first slice and after every slice."""
        ...
