"""Lines in and text out, in a terminal or through pipes."""

import re
import sys
from collections.abc import Iterator

PROMPT = "> "
# A model's text must not move the cursor or rename the window.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Terminal:
    """Text goes to standard output as it comes, notes to standard error, each on a line of its own."""

    def __init__(self) -> None:
        self._in_line = False
        for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace")):
            stream.reconfigure(errors=errors)  # pyright: ignore[reportAttributeAccessIssue]

    def lines(self) -> Iterator[str]:
        """Lines of standard input until it ends; with editing and history where somebody types them."""
        if not sys.stdin.isatty():
            yield from (line.removesuffix("\n") for line in sys.stdin)
            return
        import readline  # noqa: F401 - what `input` edits lines with

        while True:
            try:
                yield input(PROMPT)
            except KeyboardInterrupt:
                self._in_line = True
                self.note("Ctrl-D or /exit leaves")
            except EOFError:
                self._in_line = True
                self.end_line()
                return

    def write(self, text: str) -> None:
        """Show a piece of text."""
        if text := _CONTROLS.sub("", text):
            sys.stdout.write(text)
            sys.stdout.flush()
            self._in_line = not text.endswith("\n")

    def note(self, text: str) -> None:
        """Say something that is not part of the text."""
        self.end_line()
        print(text, file=sys.stderr, flush=True)

    def end_line(self) -> None:
        """Go to the beginning of a line."""
        if self._in_line:
            print(flush=True)
        self._in_line = False
