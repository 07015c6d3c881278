"""Input lines and output text, in a terminal or through pipes."""

import re
import sys
from collections.abc import Iterator

PROMPT = "> "
# A model's text must not move the cursor or rename the window.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Terminal:
    """Standard input, output and error: text goes to the output as it comes, each note to the error on its own line."""

    def __init__(self) -> None:
        self._in_line = False
        for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace")):
            stream.reconfigure(errors=errors)  # pyright: ignore[reportAttributeAccessIssue]

    def lines(self) -> Iterator[str]:
        """Yield the lines of standard input until it ends, with editing and history if it is a terminal."""
        if not sys.stdin.isatty():
            yield from (line.removesuffix("\n") for line in sys.stdin)
            return
        import readline  # noqa: F401 - gives `input` editing and history

        while True:
            try:
                yield input(PROMPT)
            except KeyboardInterrupt:
                self._in_line = True
                self.note("press Ctrl-D or type /exit to leave")
            except EOFError:
                self._in_line = True
                self.end_line()
                return

    def write(self, text: str) -> None:
        """Print a piece of text, without control characters."""
        if text := _CONTROLS.sub("", text):
            sys.stdout.write(text)
            sys.stdout.flush()
            self._in_line = not text.endswith("\n")

    def note(self, text: str) -> None:
        """Print a line that is not part of the text."""
        self.end_line()
        print(text, file=sys.stderr, flush=True)

    def end_line(self) -> None:
        """Start a new line unless the output is at the start of one."""
        if self._in_line:
            print(flush=True)
        self._in_line = False
