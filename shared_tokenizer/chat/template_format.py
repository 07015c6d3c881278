"""Any chat template as a chat format: what it writes around the contents is found by running it.

Special tokens are written by id in the template's pieces only, and the contents stay text. So no message can write a
control token, and the tokens of the answers are known exactly. Where the template changes a message, a conversation to
learn from is refused, and a prompt is written as the template writes it, with a warning.
"""

import contextlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from weakref import WeakKeyDictionary

from shared_tokenizer.chat.chat_format import ChatFormat, Edge, Marker, Message, Part, Piece
from shared_tokenizer.chat.marked_template import EDGE_MARKS, MarkedTemplate, RefusedError, Skeleton
from shared_tokenizer.sandbox.sandbox import WAY_OUT
from shared_tokenizer.tokenizers.tokenizer import Tokenizer

_EXCHANGE = (Message("user", "a"), Message("assistant", "a"))
# What a token of a template looks like where nothing else tells it.
_TOKEN = re.compile(r"<[^<>\s]{1,60}>|\[/?[A-Z_]{2,30}\]")
# Of each tokenizer in use: finds its special tokens, and the marks of the begin and end token.
_token_patterns: WeakKeyDictionary[Tokenizer, re.Pattern[str]] = WeakKeyDictionary()


def _log(line: str) -> None:
    sys.stderr.write(f"{line}\n")


@dataclass(frozen=True)
class TemplateFormat(ChatFormat):
    """The format that a chat template writes. `log` receives a warning about a prompt, one of each kind."""

    template: str
    name: str = "template"
    log: Callable[[str], None] = field(default=_log, compare=False, repr=False)
    _logged: set[str] = field(default_factory=set, compare=False, repr=False)

    @cached_property
    def _marked(self) -> MarkedTemplate:
        return MarkedTemplate(self.template)

    def check(self) -> None:
        """Raise ValueError where the template cannot write a question and its answer."""
        asked = self._marked.misplaced(_EXCHANGE[:1], as_prompt=True)
        if changes := asked or self._marked.misplaced(_EXCHANGE, as_prompt=False):
            raise ValueError(
                f"chat template: it {changes[0]}, expected the messages once and in their order; {WAY_OUT}"
            )

    def conversation(self, messages: Sequence[Message], tokenizer: Tokenizer) -> list[Piece]:
        """Return the parts of a conversation to learn from.

        Raises ValueError where the template refuses the conversation, changes a message, or ends an answer without a
        special token.
        """
        changes, _ = self._marked.changes(messages, as_prompt=False)
        if changes:
            raise ValueError(
                f"chat template: it {changes[0]}, expected the messages as they are; change the row, leave such rows "
                f"out, or {WAY_OUT}"
            )
        pieces = list(self._pieces(messages, self._marked.skeleton(messages, as_prompt=False), tokenizer))
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
        changes, written = self._marked.changes(messages, as_prompt=True)
        skeleton = self._marked.skeleton(messages, as_prompt=True)
        if any(message.role == "user" and index not in skeleton.order for index, message in enumerate(messages)):
            raise ValueError(f"chat template: it {changes[0]}, expected every message of the user")
        for change in changes:
            if change.what not in self._logged:
                self._logged.add(change.what)
                self.log(f"warning: the model's chat template {change.what} {change.where}")
        return [piece for piece, _ in self._pieces(written, skeleton, tokenizer)]

    def ends(self, tokenizer: Tokenizer) -> Sequence[Part]:
        """Return the special token after an answer; none where the template writes none."""
        skeleton = self._marked.skeleton(_EXCHANGE, as_prompt=False)
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
        skeleton = self._marked.skeleton(_EXCHANGE, as_prompt=False)
        prompt = self._marked.skeleton(_EXCHANGE[:1], as_prompt=True)
        lead = self._lead(skeleton, skeleton.order.index(1), prompt) if 1 in skeleton.order else ""
        padded = replace(_EXCHANGE[1], content=" \n a \n ")
        _, written = self._marked.changes((_EXCHANGE[0], padded), as_prompt=False)
        return lead, written[1].content == "a"

    def _pieces(
        self, messages: Sequence[Message], skeleton: Skeleton, tokenizer: Tokenizer
    ) -> Iterator[tuple[Piece, int | None]]:
        """Yield the parts, and with the part that ends an answer the index of its message."""
        before: int | None = None
        for place, gap in enumerate(skeleton.gaps):
            after = skeleton.order[place] if place < len(skeleton.order) else None
            lead = ""
            if after is not None and messages[after].role == "assistant":
                with contextlib.suppress(RefusedError):  # no prompt ends here, as between two answers
                    lead = self._lead(skeleton, place, self._marked.skeleton(messages[:after], as_prompt=True))
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
            content, learned = messages[after].content, messages[after].learned
            if messages[after].role == "assistant":
                yield from ((Piece(part, True, learned), None) for part in (*self._parts(lead, tokenizer), content))
            else:
                cut = _cut_at(_written_tokens(skeleton.gaps, tokenizer), content)
                yield from ((Piece(part, stands_apart=count % 2 == 1), None) for count, part in enumerate(cut))
            before = after

    def _lead(self, skeleton: Skeleton, place: int, prompt: Skeleton) -> str:
        """Return the text before the answer at a mark that the prompt for it lacks: the assistant writes it."""
        before = skeleton.text.partition(self._marked.mark(skeleton.order[place]))[0]
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
        edges = self._marked.edges
        for part in _token_pattern(tokenizer).split(text):
            if part in edges or part in tokenizer.special_tokens:
                yield edges.get(part) or Marker(part)
            elif part:
                yield part


@lru_cache(maxsize=1000)
def _written_tokens(gaps: tuple[str, ...], tokenizer: Tokenizer) -> tuple[str, ...]:
    """Return the tokens that a template spells and the tokenizer also finds in texts, as it does not call them special.

    In a message of the user or the system they have to stay letters.
    """
    spelled = {token for gap in gaps for token in _TOKEN.findall(gap)} - set(tokenizer.special_tokens)
    return tuple(
        token
        for token in spelled
        if any(tokenizer.pieces[number] == token.encode() for number in tokenizer.encode(token))
    )


def _cut_at(tokens: Sequence[str], text: str) -> Sequence[str]:
    """Return a text in parts, with a cut after the first character of each token."""
    if not any(token in text for token in tokens):
        return (text,)
    return re.split("|".join(f"(?<={re.escape(token[0])})(?={re.escape(token[1:])})" for token in tokens), text)


def _token_pattern(tokenizer: Tokenizer) -> re.Pattern[str]:
    if tokenizer not in _token_patterns:
        tokens = sorted(filter(None, tokenizer.special_tokens), key=len, reverse=True)
        _token_patterns[tokenizer] = re.compile(f"({'|'.join([EDGE_MARKS, *map(re.escape, tokens)])})")
    return _token_patterns[tokenizer]
