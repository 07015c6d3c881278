"""A chat template run with a mark in place of every content, and what it does to the contents themselves.

The text is cut at the marks: what is between them is the template's. It depends on the roles alone, so a template runs
once for each sequence of them. A template may also look at the contents. So a conversation is rendered a second time,
with its own contents, and compared; where the two differ, each message is rendered alone among marks, which shows what
becomes of it.
"""

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from shared_tokenizer.chat.chat_format import Edge, Message
from shared_tokenizer.sandbox.sandbox import SANDBOX, Refusal

# The begin and end token are marks too. So is what any of these objects stands for in a text.
EDGE_MARKS = rf"z[0-9a-f]{{16}}z(?:{'|'.join(edge.value for edge in Edge)})"
_KEPT_SKELETONS = 1000


@dataclass(frozen=True)
class Chat:
    """A conversation to render. `as_prompt` adds the header of the assistant's next turn."""

    messages: tuple[Message, ...]
    as_prompt: bool = False

    def given(self, begin: str, end: str) -> Mapping[str, Any]:
        """Return what a template is given, with these begin and end tokens."""
        messages = [{"role": message.role, "content": message.content} for message in self.messages]
        return {"messages": messages, "add_generation_prompt": self.as_prompt, "bos_token": begin, "eos_token": end}


@dataclass(frozen=True)
class Skeleton:
    """The text that a template writes for a sequence of roles.

    text: its text, with a mark for each content.
    gaps: the text before, between and after the marks, one more than there are marks.
    order: the index of the message at each mark.
    """

    text: str
    gaps: tuple[str, ...]
    order: tuple[int, ...]

    def joined(self, messages: Sequence[Message]) -> str:
        """Return the text with contents for the marks."""
        filled = (f"{messages[index].content}{gap}" for index, gap in zip(self.order, self.gaps[1:], strict=True))
        return "".join((self.gaps[0], *filled))


@dataclass(frozen=True)
class Change:
    """The change that a template makes to a message: a verb, the message, and how."""

    what: str
    where: str
    how: str = ""

    def __str__(self) -> str:
        return f"{self.what} {self.where}{self.how}"


class RefusedError(ValueError):
    """A template does not render a conversation."""


class MarkedTemplate:
    """A chat template, and what it writes for the sequences of roles so far."""

    def __init__(self, template: str):
        self._template = template
        # No content can spell a mark: it is random, and as many characters for every message.
        self._mark = f"z{secrets.token_hex(8)}z"
        self._skeletons: dict[tuple[tuple[str, ...], bool], Skeleton] = {}

    @property
    def edges(self) -> Mapping[str, Edge]:
        """Return the marks of the begin and end token."""
        return {f"{self._mark}{edge.value}": edge for edge in Edge}

    def mark(self, index: int) -> str:
        """Return the mark of a message."""
        return f"{self._mark}{index:06d}"

    def skeleton(self, messages: Sequence[Message], *, as_prompt: bool) -> Skeleton:
        """Return what the template writes for the roles of messages. Raises RefusedError, and ValueError on a limit."""
        key = tuple(message.role for message in messages), as_prompt
        if key not in self._skeletons:
            (text,) = self._rendered([Chat(self._marked(messages), as_prompt)])
            first, *others = re.split(rf"{self._mark}(\d{{6}})", text)
            if len(self._skeletons) >= _KEPT_SKELETONS:
                self._skeletons.clear()
            self._skeletons[key] = Skeleton(text, (first, *others[1::2]), tuple(map(int, others[::2])))
        return self._skeletons[key]

    def misplaced(self, messages: Sequence[Message], *, as_prompt: bool) -> list[Change]:
        """Return the messages that the template writes not at all, more than once or in another order."""
        order, found = self.skeleton(messages, as_prompt=as_prompt).order, list[Change]()
        for index in range(len(messages)):
            count = order.count(index)
            if count != 1:
                found.append(Change("writes more than once" if count else "leaves out", _where(messages, index)))
        if not found and list(order) != sorted(order):
            found.append(Change("writes in another order", "the messages"))
        return found

    def changes(self, messages: Sequence[Message], *, as_prompt: bool) -> tuple[list[Change], list[Message]]:
        """Return what the template does to messages, and the messages as it writes them. Raises as `skeleton` does."""
        changes, skeleton = self.misplaced(messages, as_prompt=as_prompt), self.skeleton(messages, as_prompt=as_prompt)
        (text,) = self._rendered([Chat(tuple(messages), as_prompt)])
        if text == skeleton.joined(messages):
            return changes, list(messages)
        written, marked = list(messages), self._marked(messages)
        alone = [
            Chat((*marked[:index], message, *marked[index + 1 :]), as_prompt) for index, message in enumerate(messages)
        ]
        for index, rendered in enumerate(self._rendered(alone)):
            head, mark, tail = skeleton.text.partition(self.mark(index))
            if not mark or mark in tail:
                continue
            if len(rendered) < len(head) + len(tail) or not (rendered.startswith(head) and rendered.endswith(tail)):
                changes.append(Change("writes something else around", _where(messages, index), ", because of it"))
                continue
            found = rendered[len(head) : len(rendered) - len(tail)]
            if found != messages[index].content:
                changes.append(_changed(_where(messages, index), messages[index].content, found))
                written[index] = replace(messages[index], content=found)
        if text != skeleton.joined(written) and not changes:
            changes.append(Change("writes something else around", "these messages", ", because of them"))
        return changes, written

    def _marked(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """Return the messages with a mark in place of each content."""
        return tuple(replace(message, content=self.mark(index)) for index, message in enumerate(messages))

    def _rendered(self, chats: Sequence[Chat]) -> list[str]:
        begin, end = self.edges
        texts = list[str]()
        for result in SANDBOX.render(self._template, [chat.given(begin, end) for chat in chats]):
            if isinstance(result, Refusal):
                raise RefusedError(f"chat template: found a conversation that it refuses: {result.reason}")
            texts.append(result)
        return texts


def _where(messages: Sequence[Message], index: int) -> str:
    return f"messages[{index}], of the {messages[index].role}"


def _changed(where: str, content: str, found: str) -> Change:
    if found == content.strip():
        return Change("removes the whitespace around", where)
    if not found:
        return Change("leaves out the text of", where)
    return Change("rewrites", where, f": {_shortened(content)} becomes {_shortened(found)}")


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}...")
