"""Tokens to the text that a client gets, which ends before a stop sequence."""

from collections.abc import Sequence

from shared_tokenizer.chat.reply_stream import ReplyStream
from shared_tokenizer.tokenizers.tokenizer import TextStream


class StopSequences:
    """Text as a stream that ends before the first stop sequence, wherever tokens end.

    Where several are found, the one counts that ends first, and of those that end together the longest.
    """

    def __init__(self, stops: Sequence[str]):
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def add(self, text: str) -> str:
        """The text that can be given out: what may yet become a stop sequence is held back."""
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
        """What was held back and became no stop sequence."""
        return "" if self.found else self._held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest beginning of a stop sequence with which a text ends."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)


class ReplyText:
    """Generated tokens as the text of an answer, up to a stop sequence; `stream` decodes them."""

    def __init__(self, stream: TextStream | ReplyStream, stops: Sequence[str]):
        self._stream = stream
        self._stops = StopSequences(stops)

    def add(self, token: int) -> str:
        """The text that this token adds, perhaps none."""
        return self._stops.add(self._stream.add(token))

    def end(self) -> str:
        """The text that was held back."""
        return self._stops.add(self._stream.end()) + self._stops.end()

    @property
    def stopped(self) -> bool:
        """Whether a stop sequence was found."""
        return self._stops.found
