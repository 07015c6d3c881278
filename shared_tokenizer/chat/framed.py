"""Formats in which every turn has a frame: what stands around a content does not depend on the content."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from shared_tokenizer.chat.chat_format import ChatFormat, Edge, Marker, Message, Part, Piece
from shared_tokenizer.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True)
class Frame:
    """The parts around the content of a turn, in the order header, lead, content, end, footer.

    In a turn of the assistant, lead, content and end are in the loss mask: the model has to write them itself.
    """

    header: tuple[Part, ...] = ()
    lead: str = ""
    end: tuple[Part, ...] = ()
    footer: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Thinking:
    """The form in which an answer shows the thought before it: `<think>`, the thought, `</think>`, then the answer.

    Only an answer after the last question keeps its thought, and the last of them has an empty one where it has none.
    What a tool answers, in a turn of the user, is no question.

    is_on: True if the model writes the thought; False if the header of the last answer writes an empty one.
    """

    is_on: bool

    @staticmethod
    def split(content: str) -> tuple[str, str]:
        """Return the thought and the answer of a content."""
        if "</think>" not in content:
            return "", content
        thought, answer = content.partition("</think>")[0], content.rpartition("</think>")[2]
        return thought.rpartition("<think>")[2].strip("\n"), answer.lstrip("\n")

    @staticmethod
    def is_question(turn: Message) -> bool:
        """Return True if a turn is the user's own."""
        content = turn.content
        is_of_tool = content.startswith("<tool_response>") and content.endswith("</tool_response>")
        return turn.role == "user" and not is_of_tool

    @staticmethod
    def block(thought: str) -> tuple[Part, ...]:
        """Return a thought as it stands before its answer."""
        begin, end = (Marker(mark, text_will_do=True) for mark in ("<think>", "</think>"))
        return begin, f"\n{thought}\n", end, "\n\n"


@dataclass(frozen=True)
class FramedFormat(ChatFormat):
    """A format as data.

    name: its name in commands.
    user, assistant, system: the frames of the turns.
    template: the format in Jinja, for other programs.
    published: the outputs of the templates of released models in this format, one set per template; empty where these
        are programs that only running them recognises.
    folds_system_into: the user turn that the system message, in its frame, begins. The turns of such a format
        alternate, from a user turn on: consecutive turns of one role are joined by a blank line.
    default_system: system message of conversations that have none.
    trims: whose whitespace at both ends is removed: that of whole turns, of contents before the system message is
        folded, or of answers.
    thinking: how answers show thoughts, None where a thought is part of the content.
    ends_bare: True if a conversation that ends with an answer lacks the footer.
    """

    name: str
    user: Frame
    assistant: Frame
    system: Frame
    template: str
    published: tuple[frozenset[str], ...] = ()
    folds_system_into: Literal["first", "last"] | None = None
    default_system: str | None = None
    trims: Literal["turns", "contents", "answers"] | None = None
    thinking: Thinking | None = None
    ends_bare: bool = False

    def conversation(self, messages: Sequence[Message], tokenizer: Tokenizer) -> list[Piece]:
        """Return the parts of a conversation to learn from. Raises ValueError where the turns cannot alternate."""
        return self._pieces(messages)

    def prompt(self, messages: Sequence[Message], tokenizer: Tokenizer) -> list[Piece]:
        """Return the parts of a conversation and the header of the next answer. Raises ValueError likewise."""
        return self._prompt(messages)

    def ends(self, tokenizer: Tokenizer) -> Sequence[Part]:
        """Return the parts that end a turn of the assistant."""
        return self.assistant.end

    def reply_content(self, text: str) -> str:
        """Return the content of a generated turn, without the spaces that the format puts around it."""
        return text.strip() if self.trims else text.removeprefix(self.assistant.lead)

    @property
    def folds_system(self) -> bool:
        """Return True if the system message becomes part of a user turn."""
        return self.folds_system_into is not None

    @property
    def generation_prompt(self) -> str:
        """Return the header of an assistant's turn as text."""
        header = (part for part in self.assistant.header if not isinstance(part, Edge))
        return "".join(part.text if isinstance(part, Marker) else part for part in header)

    def written(self, messages: Sequence[Message], *, as_prompt: bool, begin: str, end: str) -> str:
        """Return a conversation as text, with spellings of the begin and end token. Raises ValueError likewise."""
        edges = {Edge.BEGIN: begin, Edge.END: end}
        parts = (piece.part for piece in (self._prompt if as_prompt else self._pieces)(messages))
        return "".join(
            edges[part] if isinstance(part, Edge) else part.text if isinstance(part, Marker) else part for part in parts
        )

    def _prompt(self, messages: Sequence[Message]) -> list[Piece]:
        empty = Thinking.block("") if self.thinking and not self.thinking.is_on else ()
        return [*self._pieces(messages), *_outside_loss((*self.assistant.header, *empty))]

    def _pieces(self, messages: Sequence[Message]) -> list[Piece]:
        frames = {"system": self.system, "user": self.user, "assistant": self.assistant}
        turns, pieces = self._turns(messages), list[Piece]()
        for index, turn in enumerate(turns):
            frame, by_assistant = frames[turn.role], turn.role == "assistant"
            opened, content = self._with_thought(turns, index) if by_assistant else ((), (turn.content,))
            pieces += _outside_loss((*frame.header, *opened))
            pieces += (
                Piece(part, by_assistant, by_assistant and turn.learned) for part in (frame.lead, *content, *frame.end)
            )
            if not (self.ends_bare and by_assistant and index == len(turns) - 1):
                pieces += _outside_loss(frame.footer)
        return pieces

    def _with_thought(self, turns: Sequence[Message], index: int) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
        """Return what the header of an answer has besides, and the answer with its thought."""
        content = turns[index].content
        if self.thinking is None:
            return (), (content,)
        thought, answer = self.thinking.split(content)
        is_last = index == len(turns) - 1
        questions = [place for place, turn in enumerate(turns) if self.thinking.is_question(turn)]
        if not questions or index < questions[-1] or not (is_last or (thought and self.thinking.is_on)):
            return (), (answer,)
        answer = answer.lstrip("\n")
        if self.thinking.is_on:
            return (), (*self.thinking.block(thought), answer)
        return self.thinking.block(""), (answer,)

    def _turns(self, messages: Sequence[Message]) -> list[Message]:
        """Return the turns of the format: with its default system message, or the system message folded into one."""
        turns = list(messages)
        if self.default_system is not None and turns[0].role != "system":
            turns.insert(0, Message("system", self.default_system))
        if self.trims == "contents":
            turns = _stripped(turns)
        if self.folds_system:
            turns = self._with_folded_system(turns)
        if self.trims in ("turns", "answers"):
            turns = _stripped(turns, "assistant" if self.trims == "answers" else None)
        return _alternating(turns) if self.folds_system else turns

    def _with_folded_system(self, turns: list[Message]) -> list[Message]:
        """Put the system message in front of a user turn. Raises ValueError where the first turn is no user's."""
        system = ""
        if turns[0].role == "system":
            system = f"{_text(self.system.header)}{turns[0].content}{_text(self.system.footer)}"
            turns = turns[1:]
        if not turns or turns[0].role != "user":
            found = f"the {turns[0].role}'s" if turns else "none"
            raise ValueError(
                f"chat format {self.name}: found the first turn to be {found}, expected the user's; "
                "leave such conversations out, or use a format that allows them: chatml, llama-3, zephyr"
            )
        users = [index for index, turn in enumerate(turns) if turn.role == "user"]
        index = users[0 if self.folds_system_into == "first" else -1]
        folded = replace(turns[index], content=f"{system}{turns[index].content}")
        return [*turns[:index], folded, *turns[index + 1 :]]


def _outside_loss(parts: Sequence[Part]) -> Iterator[Piece]:
    return (Piece(part) for part in parts)


def _stripped(turns: Sequence[Message], role: str | None = None) -> list[Message]:
    return [turn if role and turn.role != role else replace(turn, content=turn.content.strip()) for turn in turns]


def _text(parts: Sequence[Part]) -> str:
    return "".join(part for part in parts if isinstance(part, str))


def _alternating(turns: Sequence[Message]) -> list[Message]:
    """Join consecutive turns of one role by a blank line. Raises ValueError where only one of them is learned."""
    merged = list[Message]()
    for turn in turns:
        if merged and merged[-1].role == turn.role:
            if merged[-1].learned != turn.learned:
                raise ValueError(
                    "messages: found two turns of the assistant in a row of which only one is learned, expected a turn "
                    "of the user between them; use a format that keeps turns apart: chatml, llama-3, zephyr"
                )
            turn = replace(turn, content=f"{merged.pop().content}\n\n{turn.content}")
        merged.append(turn)
    return merged
