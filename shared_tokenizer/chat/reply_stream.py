"""The text of an assistant's turn while it is being generated."""

from shared_tokenizer.chat.formats import ChatFormat
from shared_tokenizer.chat.messages import reply_content
from shared_tokenizer.tokenizers.tokenizer import TextStream, Tokenizer


class ReplyStream:
    """Decodes a reply token by token; `content` is that of the message so far.

    Nothing is given that may still change: neither half a character nor, where the format trims, whitespace that may
    be the last.
    """

    def __init__(self, tokenizer: Tokenizer, chat_format: ChatFormat):
        self._stream = TextStream(tokenizer)
        self._format = chat_format
        self._text = ""

    @property
    def content(self) -> str:
        """All that `add` gave, joined."""
        return reply_content(self._text, self._format)

    def add(self, token: int) -> str:
        """The text that this token completes, perhaps none."""
        return self._extend(self._stream.add(token))

    def end(self) -> str:
        """What is left: U+FFFD where the last character is not whole."""
        return self._extend(self._stream.end())

    def _extend(self, text: str) -> str:
        before = len(self.content)
        self._text += text
        return self.content[before:]
