"""The conversation that a client sends: an untrusted list of messages -> the turns before the next answer."""

from typing import Any

from shared_tokenizer.chat.chat_format import ChatFormat
from shared_tokenizer.chat.messages import Message
from shared_tokenizer.chat.parse import ROLES, joined_system, parse_messages

# Of these, only role and content say anything: no chat format has a field for a name.
MESSAGE_FIELDS = ("role", "content", "name", "refusal", "annotations", "type", "id", "cache_control", "timestamp")


def read_history(value: object, chat_format: ChatFormat) -> list[Message]:
    """Return the turns of a list of `{"role", "content"}`.

    An empty turn of the assistant stays empty, as the model wrote it; as the last message it stands for the answer to
    come, and is left out. So is a system message of null. The other system messages at the beginning become one, and
    later ones stay where they are. Raises ValueError on what is no conversation, on a message that holds more than
    text, for example tool calls, and on a system message that the format cannot write, or that is the last message.
    """
    if not isinstance(value, list) or not value:
        return list(parse_messages(value, needs_reply=False))  # raises
    turns = [turn for number, message in enumerate(value) if (turn := read_message(message, f"messages[{number}]"))]
    if turns and turns[-1].role == "assistant" and not turns[-1].content.strip():
        turns.pop()
    count = next((number for number, turn in enumerate(turns) if turn.role != "system"), len(turns))
    if any(turn.role == "system" for turn in turns[count:]):
        if turns[-1].role == "system":
            raise ValueError("messages: found a system message as the last one, expected a message of the user")
        if chat_format.folds_system:
            raise ValueError(
                f"messages: found a system message after others, which the chat format {chat_format.name} cannot "
                "write; put it first"
            )
    systems = [turn for turn in turns[:count] if turn.content.strip()] or turns[: min(count, 1)]
    return [*joined_system(tuple(systems)), *turns[count:]]


def read_message(value: Any, where: str) -> Message | None:
    """Return the turn of a message; None for a system message of null."""
    if isinstance(value, dict):
        role, content = ROLES.get(str(value.get("role")).lower()), value.get("content")
        _check_fields(value, where)
        if role == "assistant" and (blank := blank_text(content)) is not None:
            return Message("assistant", blank)
        if role == "system" and content is None and "content" in value:
            return None
    try:
        return parse_messages([value], needs_reply=False)[0]
    except ValueError as error:
        raise ValueError(str(error).replace("messages[0]", where, 1)) from None


def blank_text(content: Any) -> str | None:
    """Return the white space that a content is, as a text or as text parts; "" for null, None for anything else."""
    if content is None:
        return ""
    texts = content if isinstance(content, list) else [content]
    texts = [part["text"] if isinstance(part, dict) and part.keys() >= {"type", "text"} else part for part in texts]
    if not all(isinstance(text, str) and not text.strip() for text in texts):
        return None
    return "".join(map(str, texts))


def _check_fields(message: dict[str, Any], where: str) -> None:
    for name, value in message.items():
        if name not in MESSAGE_FIELDS and value not in (None, False, "", [], {}):
            raise ValueError(f"{where}: found {name[:100]!r}, expected only a role and a content")
