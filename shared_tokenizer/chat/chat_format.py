"""The interface of chat formats: a conversation -> the parts that write it.

`framed.FramedFormat` writes the formats that are known by name, `template_format.TemplateFormat` any other chat
template. `messages` turns the parts into ids.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal, TypeAlias

from shared_tokenizer.tokenizers.tokenizer import Tokenizer

Role: TypeAlias = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation. Of the turns of the assistant, those that are not `learned` are context only."""

    role: Role
    content: str
    learned: bool = True


class Edge(Enum):
    """The begin-of-text and end-of-text tokens of the tokenizer, whatever their spelling."""

    BEGIN = "begin"
    END = "end"


@dataclass(frozen=True)
class Marker:
    """The spelling of one special token.

    Where the tokenizer has no such token, `text_will_do` allows the spelling as text; otherwise encoding raises an
    error.
    """

    text: str
    text_will_do: bool = False


Part: TypeAlias = str | Marker | Edge


@dataclass(frozen=True)
class Piece:
    """A part of a conversation: whether the assistant writes its tokens, and whether they are in the loss mask.

    Adjacent texts are encoded as one, except where one `stands_apart` and the other does not.
    """

    part: Part
    by_assistant: bool = False
    in_loss: bool = False
    stands_apart: bool = False


class ChatFormat(ABC):
    """A format that writes a conversation as tokens.

    name: its name in commands and messages.
    template: the format in Jinja, for other programs; `template.chat_template` adapts it to a tokenizer.
    """

    name: str
    template: str

    @abstractmethod
    def conversation(self, messages: Sequence[Message], tokenizer: Tokenizer) -> list[Piece]:
        """Return the parts of a conversation to learn from. Raises ValueError where the format cannot express it."""

    @abstractmethod
    def prompt(self, messages: Sequence[Message], tokenizer: Tokenizer) -> list[Piece]:
        """Return the parts of a conversation up to where the assistant's next turn begins.

        Raises ValueError as `conversation` does.
        """

    @abstractmethod
    def ends(self, tokenizer: Tokenizer) -> Sequence[Part]:
        """Return the parts that end a turn of the assistant."""

    @abstractmethod
    def reply_content(self, text: str) -> str:
        """Return the content of a generated turn, without what the format puts around it."""

    @property
    def folds_system(self) -> bool:
        """Return True if the system message becomes part of a user turn."""
        return False
