"""Conversations with tools, written by the model's own chat template: what of it is the template's, and what is said.

The template runs with the conversation as it is, so that it may look at all of it. What is said cannot write a special
token: where it spells one, a random mark stands inside the spelling while the template runs, and the text is cut there.
"""

import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared_tokenizer.chat.chat_format import ChatFormat, Edge, Marker, Piece
from shared_tokenizer.chat.marked_template import RefusedError
from shared_tokenizer.chat.messages import encode_pieces
from shared_tokenizer.sandbox.sandbox import SANDBOX, Refusal
from shared_tokenizer.tokenizers.tokenizer import Tokenizer
from shared_tokenizer.tools.tool_calls import CALL_FORMS, CallForm

# What a token of a template looks like.
_TOKEN = re.compile(r"<[^<>\s]{1,60}>|\[/?[A-Z_]{2,30}\]")


@dataclass(frozen=True)
class ToolFormat:
    """The way in which a chat format writes tools."""

    chat_format: ChatFormat
    form: CallForm

    def encode(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any], tokenizer: Tokenizer) -> list[int]:
        """Return the ids of a conversation and the header of the next answer.

        Messages are what templates know: a role and a content, `tool_calls` of the assistant with arguments as objects,
        and of the role `tool` what a call returned. Raises RefusedError where the template refuses them, and ValueError
        on a limit.
        """
        template, mark = self.chat_format.template, f"z{secrets.token_hex(8)}z"
        spelled = {token for token in _TOKEN.findall(template) if _is_piece(token, tokenizer)}
        tokens = sorted({*tokenizer.special_tokens, *spelled} - {""}, key=len, reverse=True)
        pattern = re.compile("|".join(map(re.escape, tokens))) if tokens else None
        given = _guarded({"messages": list(messages), "tools": list(tools) or None}, pattern, mark)
        edges = {f"z{secrets.token_hex(8)}z": edge for edge in Edge}
        begin, end = edges
        (text,) = SANDBOX.render(
            template,
            [given | {"add_generation_prompt": True, "bos_token": begin, "eos_token": end}],
        )
        if isinstance(text, Refusal):
            raise RefusedError(f"the model's chat template refuses the conversation: {text.reason}")
        return encode_pieces(list(_pieces(text, edges, mark, tokenizer)), tokenizer, self.chat_format).ids


def find_tool_format(chat_format: ChatFormat) -> ToolFormat | None:
    """Return how a chat format writes tools, by what its template writes for a call; None where it does not."""
    if "tools" not in chat_format.template:
        return None
    name = f"f{secrets.token_hex(8)}"
    parameters = {"type": "object", "properties": {"x": {"type": "string", "description": "y"}}, "required": ["x"]}
    tools = [{"type": "function", "function": {"name": name, "description": "d", "parameters": parameters}}]
    ask = {"role": "user", "content": "q"}
    call = {"type": "function", "id": "000000000", "function": {"name": name, "arguments": {"x": "v"}}}
    result = {"role": "tool", "content": "r", "tool_call_id": "000000000", "name": name}
    chats = [[ask], [ask, {"role": "assistant", "content": "", "tool_calls": [call]}, result]]
    given = [
        {"messages": chat, "tools": shown, "add_generation_prompt": True, "bos_token": "", "eos_token": ""}
        for chat in chats
        for shown in (tools, None)
    ]
    try:
        shown, _, _, called = SANDBOX.render(chat_format.template, given)
    except ValueError:
        return None
    if isinstance(shown, Refusal) or name not in shown or isinstance(called, Refusal):
        return None
    form = next((form for form in CALL_FORMS if _is_written(form, called, name)), None)
    return None if form is None else ToolFormat(chat_format, form)


def _is_written(form: CallForm, text: str, name: str) -> bool:
    """Return True if a text holds a call in a form."""
    opening = r"\[\s*" if form.is_list else ""
    for found in re.finditer(rf"{re.escape(form.begin)}\s*{opening}(?={{)", text):
        try:
            value, _ = json.JSONDecoder().raw_decode(text, found.end())
        except ValueError:
            continue
        if isinstance(value, dict) and value.get("name") == name and value.get(form.arguments) == {"x": "v"}:
            return True
    return False


def _is_piece(token: str, tokenizer: Tokenizer) -> bool:
    """Return True if a tokenizer finds a token in texts as one."""
    return any(tokenizer.pieces[number] == token.encode() for number in tokenizer.encode(token))


def _guarded(value: Any, pattern: re.Pattern[str] | None, mark: str) -> Any:
    """Return a value with the mark after the first character of each spelling of a token in its texts."""
    if pattern is None:
        return value
    if isinstance(value, str):
        return pattern.sub(lambda found: f"{found[0][0]}{mark}{found[0][1:]}", value)
    if isinstance(value, Mapping):
        return {_guarded(name, pattern, mark): _guarded(each, pattern, mark) for name, each in value.items()}
    if isinstance(value, list):
        return [_guarded(each, pattern, mark) for each in value]
    return value


def _pieces(text: str, edges: Mapping[str, Edge], mark: str, tokenizer: Tokenizer) -> Iterator[Piece]:
    """Yield the parts of a rendered text: special tokens, and texts, which stand apart at a mark."""
    special = sorted({*tokenizer.special_tokens} - {""}, key=len, reverse=True)
    pattern = "|".join(map(re.escape, [*edges, *special]))
    is_first = True
    for part in re.split(f"({pattern})", text):
        if part in edges or part in tokenizer.special_tokens:
            begins = (
                is_first and tokenizer.bos_id is not None and tokenizer.special_tokens.get(part) == tokenizer.bos_id
            )
            yield Piece(Edge.BEGIN if begins else edges.get(part) or Marker(part))
            is_first = False
        elif part:
            for count, apart in enumerate(part.split(mark)):
                yield Piece(apart, stands_apart=count % 2 == 1)
            is_first = False
