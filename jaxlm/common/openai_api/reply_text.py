"""The text of an answer, decoded from tokens and cut before the first stop sequence."""

from collections.abc import Sequence

from shared_tokenizer.chat.reply_stream import ReplyStream
from shared_tokenizer.tokenizers.tokenizer import TextStream


class StopSequences:
    """A filter of streamed text that ends it before the first stop sequence, also if that spans several tokens.

    If the text holds several stop sequences, the one that ends first counts; if some end together, the longest.
    """

    def __init__(self, stops: Sequence[str]):
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def add(self, text: str) -> str:
        """Add a piece of text and return the text that is ready: a possible start of a stop sequence is held back."""
        if self.found or not self._stops:
            return "" if self.found else text
        self._held += text
        ends = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if ends:
            self.found = True
            return self._held[: min(ends)[1]]
        keep = max(_overlap(self._held, stop) for stop in self._stops)
        out, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return out

    def end(self) -> str:
        """Return the text that was held back and did not become a stop sequence."""
        return "" if self.found else self._held


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest proper prefix of `stop` that `text` ends with."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)


class ReplyText:
    """The text of an answer, token by token up to a stop sequence; `stream` decodes the tokens."""

    def __init__(self, stream: TextStream | ReplyStream, stops: Sequence[str]):
        self._stream = stream
        self._stops = StopSequences(stops)

    def add(self, token: int) -> str:
        """Return the text that this token adds, which may be empty."""
        return self._stops.add(self._stream.add(token))

    def end(self) -> str:
        """Return the text that was held back."""
        return self._stops.add(self._stream.end()) + self._stops.end()

    @property
    def stopped(self) -> bool:
        """True once a stop sequence was found."""
        return self._stops.found
