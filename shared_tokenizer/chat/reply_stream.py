"""The text of an assistant's turn while it is being generated."""

from collections.abc import Mapping

from shared_tokenizer.chat.chat_format import ChatFormat
from shared_tokenizer.tokenizers.tokenizer import TextStream, Tokenizer


class ReplyStream:
    """Decoder of a reply, token by token.

    It holds back text that may still change: an incomplete character and, where the format trims, whitespace that may
    be at the end.
    """

    def __init__(self, tokenizer: Tokenizer, chat_format: ChatFormat, spelled: Mapping[int, str] | None = None):
        """`spelled` are special tokens that are text of the reply, with their spelling."""
        self._stream = TextStream(tokenizer)
        self._format, self._spelled = chat_format, spelled or {}
        self._text = ""

    @property
    def content(self) -> str:
        """Return the text of the message so far: all texts that `add` has returned, joined."""
        return self._format.reply_content(self._text)

    def add(self, token: int) -> str:
        """Return the text that this token completes, possibly empty."""
        return self._extend(self._spelled.get(token) or self._stream.add(token))

    def end(self) -> str:
        """Return the rest of the text: U+FFFD for an incomplete character."""
        return self._extend(self._stream.end())

    def _extend(self, text: str) -> str:
        before = len(self.content)
        self._text += text
        return self.content[before:]
