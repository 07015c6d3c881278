"""Tokens to the text that a client gets: whole characters, the chat format's spaces taken off, stop sequences."""

from collections.abc import Sequence

from shared_tokenizer.chat_formats import ChatFormat
from shared_tokenizer.tokenizer import TextStream


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


class _Beginning:
    """Takes off what the chat format puts before a content."""

    def __init__(self, chat_format: ChatFormat | None):
        self._trims = chat_format is not None and chat_format.trims
        self._lead = "" if chat_format is None else chat_format.assistant.lead
        self._held = ""
        self._over = chat_format is None

    def add(self, text: str) -> str:
        if self._over:
            return text
        self._held += text
        rest = self._held.lstrip() if self._trims else self._held.removeprefix(self._lead)
        is_open = not rest if self._trims else self._lead.startswith(self._held)
        if is_open:
            return ""
        self._over = True
        return rest

    def end(self) -> str:
        """A lead that broke off is content; whitespace is not."""
        return "" if self._over or self._trims or self._held == self._lead else self._held


class _Ending:
    """Takes off whitespace at the end where the chat format trims contents."""

    def __init__(self, chat_format: ChatFormat | None):
        self._trims = chat_format is not None and chat_format.trims
        self._held = ""

    def add(self, text: str) -> str:
        text = self._held + text
        out = text.rstrip() if self._trims else text
        self._held = text[len(out) :]
        return out


class ReplyText:
    """Generated tokens as a stream of text: joined, it is `reply_content` of the whole, up to a stop sequence."""

    def __init__(self, stream: TextStream, stops: Sequence[str], chat_format: ChatFormat | None = None):
        self._stream = stream
        self._beginning, self._stops, self._ending = _Beginning(chat_format), StopSequences(stops), _Ending(chat_format)

    def add(self, token: int) -> str:
        """The text that this token adds, perhaps none."""
        return self._ending.add(self._stops.add(self._beginning.add(self._stream.add(token))))

    def end(self) -> str:
        """The text that was held back."""
        rest = self._stops.add(self._beginning.add(self._stream.end()) + self._beginning.end())
        return self._ending.add(rest + self._stops.end())

    @property
    def stopped(self) -> bool:
        """Whether a stop sequence was found."""
        return self._stops.found
