"""Conversations to ids and a loss mask.

Special tokens are inserted by id, so `<|im_end|>` in somebody's message stays the ten characters it is.

With the template that `write_chat_template` writes, transformers gives the same ids, but for three things. It
reads special tokens that are written in messages. It encodes the header of an assistant's turn together with the
content, while here the header is always encoded as before an answer is written: a byte-level tokenizer from
elsewhere can join its line end to whitespace that begins the content (or cut the two of llama-3 apart), ours end a
token at every line end. And it puts a space before every text between special tokens where a tokenizer puts one
before texts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from shared_tokenizer.chat.formats import ChatFormat, Edge, Part, Role
from shared_tokenizer.tokenizers.tokenizer import Tokenizer

# How people write the roles.
_ROLES: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
}


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True)
class EncodedChat:
    """A conversation as ids, and for each id whether it is learned: what the assistant writes, and only that."""

    ids: list[int]
    loss_mask: list[bool]


def parse_messages(value: object, *, needs_reply: bool = True) -> tuple[Message, ...]:
    """Messages of a list of `{"role", "content"}` or `{"from", "value"}`; other keys are passed over.

    A content may also be a list of text parts. Raises ValueError where the value is anything else, where a role
    is unknown, a system message not the first, a user's or an assistant's message blank, or, with `needs_reply`,
    no message the assistant's.
    """
    if not isinstance(value, list):
        raise ValueError(f"messages: found {_kind(value)}, expected a list of messages")
    messages = tuple(_parse_message(message, f"messages[{i}]") for i, message in enumerate(value))
    if not messages:
        raise ValueError("messages: found an empty list, expected a conversation")
    for i, message in enumerate(messages):
        if i and message.role == "system":
            raise ValueError(f"messages[{i}]: found a system message, expected one only at the beginning")
    if needs_reply and all(message.role != "assistant" for message in messages):
        raise ValueError("messages: found no turn of the assistant, expected one to learn from")
    return messages


def instruction_messages(instruction: str, input: str | None, output: str) -> tuple[Message, ...]:
    """An instruction and its answer as a conversation; the input, if any, follows after a blank line."""
    return (
        _checked("user", f"{instruction}\n\n{input}" if input else instruction, "instruction"),
        _checked("assistant", output, "output"),
    )


def _parse_message(value: object, place: str) -> Message:
    if not isinstance(value, dict):
        raise ValueError(f"{place}: found {_kind(value)}, expected an object with a role and a content")
    role_key, content_key = ("role", "content") if "role" in value else ("from", "value")
    for key in (role_key, content_key):
        if key not in value:
            raise ValueError(
                f"{place}: found the keys {', '.join(map(repr, value)) or 'none'}, expected 'role' and 'content', "
                f"or 'from' and 'value'"
            )
    role = value[role_key]
    if not isinstance(role, str) or role not in _ROLES:
        raise ValueError(f"{place}: found the role {role!r}, expected one of {', '.join(_ROLES)}")
    content_place = f"{place}: {content_key}"
    return _checked(_ROLES[role], _parse_content(value[content_key], content_place), content_place)


def _parse_content(value: object, place: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError(f"{place}: found {_kind(value)}, expected a text")
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            found = repr(part.get("type")) if isinstance(part, dict) else _kind(part)
            raise ValueError(f"{place}: found a part that is {found}, expected parts of the type 'text' with a text")
    return "".join(part["text"] for part in value)


def _checked(role: Role, content: str, place: str) -> Message:
    if role != "system" and not content.strip():
        raise ValueError(f"{place}: found nothing, expected what the {role} says; leave such conversations out")
    try:
        content.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{place}: found {content[error.start]!r} at {error.start}, expected Unicode text") from error
    return Message(role, content)


def _kind(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def encode_chat(messages: Sequence[Message], tokenizer: Tokenizer, chat_format: ChatFormat) -> EncodedChat:
    """Ids and loss mask of a conversation.

    It begins as a document does: with the begin token where the tokenizer has one, whether or not an imported
    template wrote it. Learned are the assistant's contents and what ends them. In formats where a marker may be
    text (`[INST]`, `<|user|>`, `### Response:`), whoever writes it in a message writes the marker.
    Raises ValueError where the format cannot express the conversation, or needs a special token that the
    tokenizer has not.
    """
    return _encode(_conversation(messages, chat_format), tokenizer, chat_format)


def encode_generation_prompt(messages: Sequence[Message], tokenizer: Tokenizer, chat_format: ChatFormat) -> list[int]:
    """Ids of a conversation up to where the assistant begins to write; `encode_chat` begins with the same.

    Raises ValueError as `encode_chat` does, and where the last message is not the user's.
    """
    if messages and messages[-1].role != "user":
        found = messages[-1].role
        raise ValueError(f"messages: found the last one to be the {found}'s, expected the user's, to be answered")
    prompt = [*_conversation(messages, chat_format), *_untrained(chat_format.assistant.header)]
    return _encode(prompt, tokenizer, chat_format).ids


def stop_ids(tokenizer: Tokenizer, chat_format: ChatFormat) -> list[int]:
    """Ids that end the assistant's turn, and the end-of-text token."""
    ends = (_resolved(part, tokenizer, chat_format) for part in chat_format.assistant.end)
    return list(dict.fromkeys([*(end for end in ends if isinstance(end, int)), tokenizer.eos_id]))


def reply_content(text: str, chat_format: ChatFormat) -> str:
    """The content of an assistant's turn from its generated text: without the spaces that the format puts there."""
    if chat_format.trims:
        return text.strip()
    return text.removeprefix(chat_format.assistant.lead)


@dataclass(frozen=True)
class _Piece:
    """A part of a conversation, and whether it is learned."""

    part: Part
    learned: bool


def _untrained(parts: Sequence[Part]) -> Iterator[_Piece]:
    return (_Piece(part, False) for part in parts)


def _conversation(messages: Sequence[Message], chat_format: ChatFormat) -> list[_Piece]:
    frames = {"system": chat_format.system, "user": chat_format.user, "assistant": chat_format.assistant}
    pieces = list[_Piece]()
    for turn in _turns(messages, chat_format):
        frame, learned = frames[turn.role], turn.role == "assistant"
        pieces += _untrained(frame.header)
        pieces += (_Piece(part, learned) for part in (frame.lead, turn.content, *frame.end))
        pieces += _untrained(frame.footer)
    return pieces


def _turns(messages: Sequence[Message], chat_format: ChatFormat) -> list[Message]:
    """The turns as the format has them: with its default system message, or with the system message folded in."""
    turns = list(messages)
    if not turns:
        raise ValueError("messages: found none, expected a conversation")
    if chat_format.default_system is not None and turns[0].role != "system":
        turns.insert(0, Message("system", chat_format.default_system))
    if chat_format.folds_system:
        turns = _with_folded_system(turns, chat_format)
    if chat_format.trims:
        turns = [replace(turn, content=turn.content.strip()) for turn in turns]
    return _alternating(turns) if chat_format.folds_system else turns


def _with_folded_system(turns: list[Message], chat_format: ChatFormat) -> list[Message]:
    system = ""
    if turns[0].role == "system":
        system = f"{_text(chat_format.system.header)}{turns[0].content}{_text(chat_format.system.footer)}"
        turns = turns[1:]
    if not turns or turns[0].role != "user":
        found = f"the {turns[0].role}'s" if turns else "none"
        raise ValueError(
            f"chat format {chat_format.name}: found the first turn to be {found}, expected the user's; "
            f"leave such conversations out, or use a format that has them: chatml, llama-3, zephyr"
        )
    return [Message("user", f"{system}{turns[0].content}"), *turns[1:]]


def _text(parts: Sequence[Part]) -> str:
    return "".join(part for part in parts if isinstance(part, str))


def _alternating(turns: Sequence[Message]) -> list[Message]:
    merged = list[Message]()
    for turn in turns:
        if merged and merged[-1].role == turn.role:
            turn = Message(turn.role, f"{merged.pop().content}\n\n{turn.content}")
        merged.append(turn)
    return merged


def _encode(pieces: Sequence[_Piece], tokenizer: Tokenizer, chat_format: ChatFormat) -> EncodedChat:
    if pieces[0].part is not Edge.BEGIN:
        pieces = [_Piece(Edge.BEGIN, False), *pieces]
    resolved = ((_resolved(piece.part, tokenizer, chat_format), piece.learned) for piece in pieces)
    written = [(part, learned) for part, learned in resolved if part != ""]
    ids, loss_mask, after_text = list[int](), list[bool](), False
    # Text between two special tokens is encoded as one where it is learned alike: so transformers does it.
    for (is_text, learned), run in groupby(written, key=lambda piece: (isinstance(piece[0], str), piece[1])):
        parts = [part for part, _ in run]
        text = "".join(map(str, parts))
        ids += _encode_text(text, tokenizer, after_text) if is_text else map(int, parts)
        loss_mask += [learned] * (len(ids) - len(loss_mask))
        after_text = is_text
    return EncodedChat(ids, loss_mask)


def _resolved(part: Part, tokenizer: Tokenizer, chat_format: ChatFormat) -> int | str:
    """A part as this tokenizer has it: the id of a special token, or text."""
    if isinstance(part, str):
        return part
    if isinstance(part, Edge):
        token = tokenizer.bos_id if part is Edge.BEGIN else tokenizer.eos_id
        return "" if token is None else token
    token = tokenizer.special_tokens.get(part.text)
    if token is None and not part.text_will_do:
        raise ValueError(
            f"chat format {chat_format.name}: found no special token {part.text!r} in the tokenizer, whose special "
            f"tokens are {', '.join(list(tokenizer.special_tokens)[:10])}; use a format whose markers it has"
        )
    return part.text if token is None else token


def _encode_text(text: str, tokenizer: Tokenizer, after_text: bool) -> list[int]:
    """Ids of a text; a tokenizer that puts a space before each does so neither within one nor before a space."""
    if not tokenizer.strips_first_space or not (after_text or text.startswith(" ")):
        return tokenizer.encode(text)
    line_end, ids = tokenizer.encode("\n"), tokenizer.encode(f"\n{text}")
    if ids[: len(line_end)] != line_end:
        raise ValueError(
            f"messages: found {text[:20]!r} after other text, and a tokenizer that puts a space before each text and "
            f"joins line ends with what follows; expected contents that begin with no line end"
        )
    return ids[len(line_end) :]
