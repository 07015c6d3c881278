"""Messages as data sets and clients write them -> the turns of a conversation.

A key that would change what is learned, or what the assistant says, is followed or refused by its name. `unused_keys`
names the other ones.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from shared_tokenizer.chat.chat_format import Role
from shared_tokenizer.chat.messages import Message

# The spellings of the roles in published data sets, in lower case.
ROLES: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "developer": "system",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "model": "assistant",
    "ai": "assistant",
}
# Roles of tools, which no format here writes.
TOOL_ROLES = ("tool", "function", "observation", "function_call", "function_response", "tool_call", "tool_response")
# The keys of role and content of a message; the first pair that a message has is read.
MESSAGE_KEYS = (("role", "content"), ("from", "value"), ("role", "text"), ("speaker", "text"), ("from", "content"))
# Keys that say whether a turn of the assistant is learned: 0 or false makes it context only.
LEARNING_KEYS = ("weight", "loss_weight", "train", "training", "trainable", "learn", "loss")
# Keys of which the meaning is not followed here, and without which something else would be learned.
REFUSED_KEYS = (
    "tool_calls",
    "function_call",
    "reasoning_content",
    "reasoning",
    "thinking",
    "train_detail",
    "training_detail",
    "refusal",
    "mask",
    "masked",
    "loss_mask",
    "images",
    "image",
    "audio",
    "videos",
)


def parse_messages(
    value: object, *, needs_reply: bool = True, roles: Mapping[str, str] | None = None
) -> tuple[Message, ...]:
    """Return the messages of a list of `{"role", "content"}`, `{"from", "value"}` or another pair of MESSAGE_KEYS.

    A content may also be a list of text parts. `roles` maps spellings of roles beyond the common ones. System messages
    at the beginning become one. `needs_reply` reads a conversation to learn from: it follows LEARNING_KEYS and refuses
    REFUSED_KEYS. Raises ValueError on any other value, an unknown role, a later system message, a blank message of
    user or assistant, and, with `needs_reply`, a conversation without a turn of the assistant that is learned.
    """
    if not isinstance(value, list):
        raise ValueError(f"messages: found {_kind(value)}, expected a list of messages")
    messages = tuple(
        _parse_message(message, f"messages[{i}]", roles or {}, to_learn=needs_reply) for i, message in enumerate(value)
    )
    if not messages:
        raise ValueError("messages: found an empty list, expected a conversation")
    systems = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))
    for i, message in enumerate(messages[systems:], systems):
        if message.role == "system":
            raise ValueError(f"messages[{i}]: found a system message, expected one only as the first message")
    if needs_reply:
        check_reply(messages)
    return joined_system(messages[:systems]) + messages[systems:]


def check_reply(messages: tuple[Message, ...]) -> None:
    """Raise ValueError where no turn of a conversation is learned."""
    replies = [message for message in messages if message.role == "assistant"]
    if not replies:
        raise ValueError("messages: found no turn of the assistant, expected one to learn from")
    if not any(message.learned for message in replies):
        raise ValueError(
            "messages: found only turns of the assistant that are not to be learned, expected one to learn"
        )


def joined_system(systems: tuple[Message, ...]) -> tuple[Message, ...]:
    """Return system messages as one, their contents apart by a blank line; none and one stay as they are."""
    if len(systems) < 2:
        return systems
    return (Message("system", "\n\n".join(message.content for message in systems)),)


def instruction_messages(instruction: str, input: str | None, output: str) -> tuple[Message, ...]:
    """Return a conversation of an instruction and its answer. The input follows the instruction after a blank line, or
    stands alone where that is empty.

    Raises ValueError where either is blank.
    """
    return (
        _checked("user", "\n\n".join(part for part in (instruction, input) if part), "instruction"),
        _checked("assistant", output, "output"),
    )


def system_message(content: str | list[Any]) -> tuple[Message, ...]:
    """Return the system message of a text or of text parts, none for a blank one.

    Raises ValueError where a part is no text, or the text is not Unicode.
    """
    text = _parse_content(content, "system")
    return (_checked("system", text, "system"),) if text.strip() else ()


def is_message(value: object) -> bool:
    """Return True if a value is an object with the keys of a message."""
    return isinstance(value, dict) and any(role in value and content in value for role, content in MESSAGE_KEYS)


def unused_keys(value: list[Any]) -> Iterator[str]:
    """Yield the keys of messages that hold something which `parse_messages` has not used."""
    for message in filter(is_message, value):
        used = _message_keys(message, "")
        speaker = ROLES.get(str(message[used[0]]).lower(), "assistant")
        for key, found in message.items():
            if key in used or found in (None, "") or found == [] or found == {}:
                continue
            if key not in LEARNING_KEYS:
                yield key
            elif found and speaker != "assistant":
                yield f"{key} of {message[used[0]]}"


def _parse_message(value: object, where: str, roles: Mapping[str, str], *, to_learn: bool) -> Message:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: found {_kind(value)}, expected an object with a role and a content")
    if to_learn and not is_message(value):
        _refuse_keys(value, "content", where)
    role_key, content_key = _message_keys(value, where)
    role = _parse_role(value[role_key], where, roles, to_learn=to_learn)
    if to_learn:
        _refuse_keys(value, content_key, where)
    content_where = f"{where}: {content_key}"
    message = _checked(role, _parse_content(value[content_key], content_where), content_where)
    if not to_learn or role != "assistant":
        return message
    return replace(message, learned=all([_is_learned(value[key], key, where) for key in LEARNING_KEYS if key in value]))


def _message_keys(value: Mapping[str, Any], where: str) -> tuple[str, str]:
    for role_key, content_key in MESSAGE_KEYS:
        if role_key in value and content_key in value:
            return role_key, content_key
    raise ValueError(
        f"{where}: found the keys {', '.join(map(repr, value)) or 'none'}, expected 'role' and 'content', "
        f"or 'from' and 'value'"
    )


def _parse_role(role: object, where: str, roles: Mapping[str, str], *, to_learn: bool) -> Role:
    found = ROLES.get(roles.get(role, role).lower()) if isinstance(role, str) else None
    if found is not None:
        return found
    hint = ""
    if to_learn and isinstance(role, str):
        no_tools = "no chat format here writes those of tools: " if role.lower() in TOOL_ROLES else ""
        hint = f'; {no_tools}leave such conversations out, or say who speaks: --roles \'{{"{role}": "user"}}\''
    raise ValueError(f"{where}: found the role {role!r}, expected one of {', '.join(ROLES)}{hint}")


def _refuse_keys(value: Mapping[str, Any], content_key: str, where: str) -> None:
    for key in REFUSED_KEYS:
        if key not in value or value[key] in (None, "") or value[key] == [] or value[key] == {}:
            continue
        beside = f" beside {content_key} null" if value.get(content_key) is None else ""
        raise ValueError(
            f"{where}: found {key!r}{beside}, which no chat format here writes; put it into the content, or leave such "
            "conversations out"
        )


def _is_learned(value: object, key: str, where: str) -> bool:
    """Return False where a turn is context only. Raises ValueError on any value but None, 0, 1, false and true."""
    if value is None:
        return True
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    raise ValueError(f"{where}: {key}: found {value!r}, expected 0 or 1: a turn is learned or it is not")


def _parse_content(value: object, where: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError(f"{where}: found {_kind(value)}, expected a text")
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            found = repr(part.get("type")) if isinstance(part, dict) else _kind(part)
            raise ValueError(f"{where}: found a part that is {found}, expected parts of the type 'text' with a text")
    return "".join(part["text"] for part in value)


def _checked(role: Role, content: str, where: str) -> Message:
    if role != "system" and not content.strip():
        raise ValueError(f"{where}: found no text, expected the message of the {role}; leave such conversations out")
    try:
        content.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: found {content[error.start]!r} at {error.start}, expected Unicode text") from error
    return Message(role, content)


def _kind(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
