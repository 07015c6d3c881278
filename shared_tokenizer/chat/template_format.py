"""Any chat template as a chat format: what it writes around the contents is found by running it.

The template runs in the sandbox with a mark in place of every content. Its text is cut at the marks: the pieces between
them are the template's, in which special tokens are written by id, and the contents stay text. So no message can write
a control token, and the tokens of the answers are known exactly. A template runs once for each sequence of roles.

A template may also look at the contents. So every conversation is rendered a second time, with its own contents, and
compared with the pieces and contents joined. Where they differ, the message is named: a conversation to learn from is
refused, and a prompt is written as the template writes it, with a warning.
"""

import contextlib
import re
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from weakref import WeakKeyDictionary

from shared_tokenizer.chat.chat_format import ChatFormat, Edge, Marker, Message, Part, Piece
from shared_tokenizer.chat.sandbox import SANDBOX, WAY_OUT, Chat, Refusal
from shared_tokenizer.tokenizers.tokenizer import Tokenizer

TEMPLATE = "template"
_KEPT_SKELETONS = 1000
_PADDING = " \n"


@dataclass(frozen=True)
class _Skeleton:
    """What a template writes for a sequence of roles.

    text: its text, with a mark for each content.
    gaps: the text before, between and after the marks, one more than there are marks.
    order: the index of the message at each mark.
    """

    text: str
    gaps: tuple[str, ...]
    order: tuple[int, ...]

    def joined(self, contents: Sequence[str]) -> str:
        """Return the text with contents for the marks."""
        filled = (f"{contents[index]}{gap}" for index, gap in zip(self.order, self.gaps[1:], strict=True))
        return "".join((self.gaps[0], *filled))


class RefusedError(ValueError):
    """A template does not render a conversation."""


def _log(line: str) -> None:
    sys.stderr.write(f"{line}\n")


@dataclass(frozen=True)
class TemplateFormat(ChatFormat):
    """The format that a chat template writes. `log` receives a warning about a prompt, each one once."""

    template: str
    name: str = TEMPLATE
    log: Callable[[str], None] = field(default=_log, compare=False, repr=False)
    # No content can spell a mark: it is random, and as many characters for every message.
    _mark: str = field(default_factory=lambda: f"z{secrets.token_hex(8)}z", compare=False, repr=False)
    _skeletons: dict[tuple[tuple[str, ...], bool], _Skeleton] = field(default_factory=dict, compare=False, repr=False)
    _logged: set[str] = field(default_factory=set, compare=False, repr=False)

    def check(self) -> None:
        """Raise ValueError where the template cannot write a question and its answer."""
        prompt = self._skeleton(_EXCHANGE[:1], as_prompt=True)
        changes = _misplaced(_EXCHANGE[:1], prompt.order) or _misplaced(
            _EXCHANGE, self._skeleton(_EXCHANGE, as_prompt=False).order
        )
        if changes:
            raise ValueError(
                f"chat template: it {changes[0]}, expected the messages once and in their order; {WAY_OUT}"
            )

    def conversation(self, messages: Sequence[Message], tokenizer: Tokenizer) -> list[Piece]:
        """Return the parts of a conversation to learn from.

        Raises ValueError where the template refuses the conversation, changes a message, or ends an answer without a
        special token.
        """
        skeleton = self._skeleton(messages, as_prompt=False)
        changes, _ = self._changes(messages, skeleton, as_prompt=False)
        if changes:
            raise ValueError(
                f"chat template: it {changes[0]}, expected the messages as they are; change the row, leave such rows "
                f"out, or {WAY_OUT}"
            )
        pieces = list(self._pieces(messages, skeleton, tokenizer))
        if (index := self._unended(messages, pieces)) is not None:
            raise ValueError(
                f"chat template: found no special token after messages[{index}], expected one: a model would not learn "
                "where its answers end"
            )
        return [piece for piece, _ in pieces]

    def prompt(self, messages: Sequence[Message], tokenizer: Tokenizer) -> list[Piece]:
        """Return the parts of a conversation up to the assistant's next turn, and log what the template changes.

        Raises ValueError where the template refuses the conversation.
        """
        skeleton = self._skeleton(messages, as_prompt=True)
        changes, written = self._changes(messages, skeleton, as_prompt=True)
        if any(message.role == "user" and index not in skeleton.order for index, message in enumerate(messages)):
            raise ValueError(f"chat template: it {changes[0]}, expected every message of the user")
        for change in changes:
            if change not in self._logged:
                self._logged.add(change)
                self.log(f"warning: the model's chat template {change}")
        return [piece for piece, _ in self._pieces(written, skeleton, tokenizer)]

    def ends(self, tokenizer: Tokenizer) -> Sequence[Part]:
        """Return the special token after an answer; none where the template writes none."""
        skeleton = self._skeleton(_EXCHANGE, as_prompt=False)
        after = self._parts(skeleton.gaps[-1], tokenizer)
        return [part for part in after if not isinstance(part, str)][:1]

    def reply_content(self, text: str) -> str:
        """Return the content of a generated turn, without the text that the template writes before every answer."""
        lead, trims = self._reply_frame
        text = "" if lead.startswith(text) else text.removeprefix(lead)
        return text.strip() if trims else text

    @cached_property
    def _reply_frame(self) -> tuple[str, bool]:
        """Return the text that an answer begins with, and whether the template trims answers."""
        skeleton = self._skeleton(_EXCHANGE, as_prompt=False)
        prompt = self._skeleton(_EXCHANGE[:1], as_prompt=True)
        lead = self._lead(skeleton, skeleton.order.index(1), prompt) if 1 in skeleton.order else ""
        padded = replace(_EXCHANGE[1], content=f"{_PADDING}a{_PADDING}")
        _, written = self._changes((_EXCHANGE[0], padded), skeleton, as_prompt=False)
        return lead, written[1].content == "a"

    def _pieces(
        self, messages: Sequence[Message], skeleton: _Skeleton, tokenizer: Tokenizer
    ) -> Iterator[tuple[Piece, int | None]]:
        """Yield the parts, and with the part that ends an answer the index of its message."""
        before: int | None = None
        for place, gap in enumerate(skeleton.gaps):
            after = skeleton.order[place] if place < len(skeleton.order) else None
            lead = ""
            if after is not None and messages[after].role == "assistant":
                with contextlib.suppress(RefusedError):  # no prompt ends here, as between two answers
                    lead = self._lead(skeleton, place, self._skeleton(messages[:after], as_prompt=True))
            parts = list(self._parts(gap[: len(gap) - len(lead)], tokenizer))
            parts = [Edge.BEGIN, *parts[1:]] if place == 0 and self._begins(parts, tokenizer) else parts
            if before is not None and messages[before].role == "assistant":
                end = next((count for count, part in enumerate(parts, 1) if not isinstance(part, str)), 0)
                for count, part in enumerate(parts[:end], 1):
                    yield Piece(part, True, messages[before].learned), before if count == end else None
                parts = parts[end:]
            yield from ((Piece(part), None) for part in parts)
            if after is None:
                return
            by_assistant, learned = messages[after].role == "assistant", messages[after].learned
            for part in (*self._parts(lead, tokenizer), messages[after].content):
                yield Piece(part, by_assistant, by_assistant and learned), None
            before = after

    def _lead(self, skeleton: _Skeleton, place: int, prompt: _Skeleton) -> str:
        """Return the text before the answer at a mark that the prompt for it lacks: the assistant writes it."""
        before = skeleton.text.partition(f"{self._mark}{skeleton.order[place]:06d}")[0]
        lead = before.removeprefix(prompt.text)
        return lead if before != lead and skeleton.gaps[place].endswith(lead) else ""

    @staticmethod
    def _unended(messages: Sequence[Message], pieces: Sequence[tuple[Piece, int | None]]) -> int | None:
        """Return the index of the first answer to learn without an end, None where all have one."""
        ended = {index for _, index in pieces}
        answers = (index for index, message in enumerate(messages) if message.role == "assistant" and message.learned)
        return next((index for index in answers if index not in ended), None)

    @staticmethod
    def _begins(parts: Sequence[Part], tokenizer: Tokenizer) -> bool:
        """Return True if the first part is the begin token of the tokenizer, by its name or its spelling."""
        if not parts or tokenizer.bos_id is None or not isinstance(parts[0], Marker):
            return False
        return tokenizer.special_tokens.get(parts[0].text) == tokenizer.bos_id

    def _parts(self, text: str, tokenizer: Tokenizer) -> Iterator[Part]:
        """Yield a text of the template with its special tokens apart."""
        edges: dict[str, Part] = {f"{self._mark}{edge.value}": edge for edge in Edge}
        for part in _token_pattern(tokenizer).split(text):
            if part in edges or part in tokenizer.special_tokens:
                yield edges.get(part) or Marker(part)
            elif part:
                yield part

    @property
    def _variables(self) -> dict[str, str]:
        return {"bos_token": f"{self._mark}{Edge.BEGIN.value}", "eos_token": f"{self._mark}{Edge.END.value}"}

    def _skeleton(self, messages: Sequence[Message], *, as_prompt: bool) -> _Skeleton:
        key = tuple(message.role for message in messages), as_prompt
        if key not in self._skeletons:
            (text,) = self._rendered([Chat(self._marked(messages), as_prompt)])
            first, *others = re.split(rf"{self._mark}(\d{{6}})", text)
            skeleton = _Skeleton(text, (first, *others[1::2]), tuple(map(int, others[::2])))
            if len(self._skeletons) >= _KEPT_SKELETONS:
                self._skeletons.clear()
            self._skeletons[key] = skeleton
        return self._skeletons[key]

    def _marked(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """Return the messages with a mark in place of each content."""
        return tuple(replace(message, content=f"{self._mark}{i:06d}") for i, message in enumerate(messages))

    def _rendered(self, chats: Sequence[Chat]) -> list[str]:
        texts = list[str]()
        for result in SANDBOX.render(self.template, chats, self._variables):
            if isinstance(result, Refusal):
                raise RefusedError(f"chat template: found a conversation that it refuses: {result.reason}")
            texts.append(result)
        return texts

    def _changes(
        self, messages: Sequence[Message], skeleton: _Skeleton, *, as_prompt: bool
    ) -> tuple[list[str], list[Message]]:
        """Return what the template does to messages, one line each, and the messages as it writes them."""
        changes = _misplaced(messages, skeleton.order)
        (text,) = self._rendered([Chat(tuple(messages), as_prompt)])
        if text == skeleton.joined([message.content for message in messages]):
            return changes, list(messages)
        written = list(messages)
        marked = self._marked(messages)
        alone = [
            Chat((*marked[:index], message, *marked[index + 1 :]), as_prompt) for index, message in enumerate(messages)
        ]
        for index, rendered in enumerate(self._rendered(alone)):
            head, mark, tail = skeleton.text.partition(marked[index].content)
            if not mark or mark in tail:
                continue
            where = f"messages[{index}], of the {messages[index].role}"
            if len(rendered) < len(head) + len(tail) or not (rendered.startswith(head) and rendered.endswith(tail)):
                changes.append(f"writes something else around {where}, because of what it says")
                continue
            found = rendered[len(head) : len(rendered) - len(tail)]
            if found != messages[index].content:
                changes.append(_changed(where, messages[index].content, found))
                written[index] = replace(messages[index], content=found)
        if text != skeleton.joined([message.content for message in written]) and not changes:
            changes.append("writes something else around these messages, because of what they say")
        return changes, written


_EXCHANGE = (Message("user", "a"), Message("assistant", "a"))
# Of each tokenizer in use: finds its special tokens, and the stand-ins for its begin and end token.
_token_patterns: WeakKeyDictionary[Tokenizer, re.Pattern[str]] = WeakKeyDictionary()


def _token_pattern(tokenizer: Tokenizer) -> re.Pattern[str]:
    if tokenizer not in _token_patterns:
        tokens = sorted(filter(None, tokenizer.special_tokens), key=len, reverse=True)
        edges = f"z[0-9a-f]{{16}}z(?:{'|'.join(edge.value for edge in Edge)})"
        _token_patterns[tokenizer] = re.compile(f"({'|'.join([edges, *map(re.escape, tokens)])})")
    return _token_patterns[tokenizer]


def _misplaced(messages: Sequence[Message], order: Sequence[int]) -> list[str]:
    found = list[str]()
    for index, message in enumerate(messages):
        where, count = f"messages[{index}], of the {message.role}", order.count(index)
        if count != 1:
            found.append(f"leaves out {where}" if count == 0 else f"writes {where}, {count} times")
    if not found and list(order) != sorted(order):
        found.append("writes the messages in another order")
    return found


def _changed(where: str, content: str, found: str) -> str:
    if found == content.strip():
        return f"removes the whitespace around {where}"
    if not found:
        return f"leaves out the text of {where}"
    return f"rewrites {where}: {_shortened(content)} becomes {_shortened(found)}"


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}...")
