"""Chat templates of others -> the known format that they write: by their text, or by what they write for a few chats.

Reading a text runs nothing. A template with other words than those of simple ones (tools, dates, thinking) is run in
the sandbox.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from shared_tokenizer.chat.chat_format import Message
from shared_tokenizer.chat.formats import CHAT_FORMATS
from shared_tokenizer.chat.framed import FramedFormat
from shared_tokenizer.chat.marked_template import Chat
from shared_tokenizer.sandbox.sandbox import SANDBOX, Refusal

NO_BOS = "{%- set bos_token = '' %}\n"
_BEGIN, _END = "[begin of text]", "[end of text]"
_SYSTEM, _ASK, _REPLY = Message("system", "s0"), Message("user", "q1"), Message("assistant", "a2")
_THOUGHT = Message("assistant", "<think>\nt3\n</think>\n\na4")
# A template of a known format writes all of these as the format does. It may refuse two turns of one role, and a system
# message if the format puts that into a question.
_CHATS = (
    Chat((_ASK, _REPLY, Message("user", "q5")), as_prompt=True),
    Chat((_ASK, _REPLY, Message("user", "q5"), Message("assistant", "a6"))),
    Chat(
        (Message("user", " \n q7 \n "), Message("assistant", " \n a8 \n "), Message("user", "\tq9\n")), as_prompt=True
    ),
    Chat((_ASK, _THOUGHT, Message("user", "q5"), _THOUGHT)),
)
_CHATS_OF_ONE_ROLE = (Chat((_ASK, Message("user", "q5"), _REPLY)), Chat((_ASK, _REPLY, Message("assistant", "a6"))))
_MOST_STRINGS, _LONGEST_STRING = 200, 200
_CHATS_WITH_SYSTEM = (
    Chat((_SYSTEM, _ASK), as_prompt=True),
    Chat((_SYSTEM, _ASK, _REPLY, Message("user", "q5")), as_prompt=True),
)


def recognise_text(template: str) -> FramedFormat | None:
    """Return the format of a template by its text, None where it is not known. Nothing is run.

    A template of `chat_template` is compared as a whole. Of any other one, all outputs have to equal those of one
    published template, and its conditions may depend on roles and positions only. So a template with another default
    system message, or with an additional space, is not known. The begin token is not compared.
    """
    ours = template.removeprefix(NO_BOS).strip()
    for known in CHAT_FORMATS.values():
        if ours == known.template.strip():
            return known
    outputs, is_simple = _read_outputs(template)
    for known in CHAT_FORMATS.values() if is_simple else ():
        if outputs - {known.generation_prompt} in known.published:
            return known
    return None


def recognise_output(template: str) -> FramedFormat | None:
    """Return the format of a template by what it writes for a few chats in the sandbox, None where it is not known.

    Some of the chats say what the template spells, so that it shows if it looks for that in messages. The result keeps
    the template, which may write tools besides. The begin token is not compared. Raises ValueError where it is no
    template, or exceeds a limit.
    """
    chats = (*_CHATS, *_CHATS_WITH_SYSTEM, *_CHATS_OF_ONE_ROLE, *_spelled_chats(template))
    results = SANDBOX.render(template, [chat.given(_BEGIN, _END) for chat in chats])
    found = {
        chat: None if isinstance(result, Refusal) else result.removeprefix(_BEGIN)
        for chat, result in zip(chats, results, strict=True)
    }
    known = next((known for known in CHAT_FORMATS.values() if _writes_these(known, found)), None)
    return None if known is None else replace(known, template=template)


def _writes_these(known: FramedFormat, found: Mapping[Chat, str | None]) -> bool:
    """Return True if a format writes the same text for each conversation. None stands for a conversation refused."""
    for chat, text in found.items():
        if text is None and (chat in _CHATS_OF_ONE_ROLE or (chat in _CHATS_WITH_SYSTEM and known.folds_system)):
            continue
        drops_thoughts = known.thinking is not None and not known.thinking.is_on
        if text != _expected(known, chat) and not (drops_thoughts and _has_thought(chat)):
            return False
    return True


def _has_thought(chat: Chat) -> bool:
    return any("</think>" in message.content for message in chat.messages)


def _spelled_chats(template: str) -> Iterator[Chat]:
    """Yield chats whose messages are the strings of a template: alone, inside a word, and at both ends of one."""
    found = dict.fromkeys(_unescaped(string[0][1:-1]) for string in _STRING.finditer(template))
    strings = [string for string in found if 0 < len(string) <= _LONGEST_STRING][:_MOST_STRINGS]
    for string, following in zip(strings, [*strings[1:], "z"], strict=False):
        for said in (string, f"x{string}y", f"{string}x{following}"):
            ask, reply = Message("user", said), Message("assistant", said)
            yield Chat((ask, reply, ask, reply))


def _expected(known: FramedFormat, chat: Chat) -> str:
    text = known.written(chat.messages, as_prompt=chat.as_prompt, begin=_BEGIN, end=_END)
    return text.removeprefix(_BEGIN)


# A template with any other word (tools, dates, thinking) can write outputs that no format here has.
_KNOWN_WORD = re.compile(
    "if|elif|else|endif|for|in|endfor|set|not|and|or|is|defined|undefined|[Nn]one|[Tt]rue|[Ff]alse|"
    "messages|message|loop_messages|system_message|content|role|system|user|assistant|loop|first|last|index0|"
    "add_generation_prompt|bos_token|eos_token|trim|strip|capitalize|generation|endgeneration"
)
# A `+` at either end of a block changes the whitespace of the output.
_WORD = re.compile(r"[A-Za-z_]\w*|^\+|\+$")
# An unclosed string ends with the text, so that no template makes the search quadratic.
_STRING = re.compile(r"""'(?:\\.|[^'\\])*(?:'|\\?\Z)|"(?:\\.|[^"\\])*(?:"|\\?\Z)""", re.DOTALL)
_OPENING = re.compile(r"\{[{%#]")
_CLOSING = {"{{": "}}", "{%": "%}", "{#": "#}"}


def _read_outputs(template: str) -> tuple[frozenset[str], bool]:
    """Return the outputs of a template between its conditions, names in braces, and True if all its words are known."""
    outputs, words, current = set[str](), set[str](), ""
    for bracket, body in [*_pieces(template), ("{%", "")]:
        if not bracket:
            current += _literal(body)
        elif bracket == "{{":
            current += "" if body.startswith("raise_exception(") else _written(body)
        elif bracket == "{%":
            outputs.add(current)
            current = ""
            if body.startswith("set ") and _STRING.search(value := _with_dots(body.partition("=")[2])):
                outputs.add(_written(value))
                body = _STRING.sub("", value)
            words.update(word for word in _WORD.findall(body) if not _KNOWN_WORD.fullmatch(word))
    return frozenset(outputs - {"", "{bos_token}"}), not words


def _written(expression: str) -> str:
    """Return the output of an expression: its strings, and the names between them in braces."""
    written, position = "", 0
    expression = _with_dots(expression)
    for string in _STRING.finditer(expression):
        written += _in_braces(expression[position : string.start()]) + _literal(_unescaped(string[0][1:-1]))
        position = string.end()
    return written + _in_braces(expression[position:])


def _with_dots(expression: str) -> str:
    """Rewrite `message['content']` as `message.content`, which means the same."""
    return re.sub(r"""\[(['"])(\w+)\1\]""", r".\2", expression)


def _literal(text: str) -> str:
    """Escape the braces of a text, which would mark a name."""
    return text.replace("{", "{{")


def _in_braces(names: str) -> str:
    """Rewrite `+ message.content | trim +` as `{message.content|trim}`."""
    terms = ("".join(term.split()).replace(".strip()", "|trim") for term in re.split(r"[+~]", names))
    return "".join(f"{{{term}}}" for term in terms if term)


def _unescaped(string: str) -> str:
    escapes = {"n": "\n", "t": "\t", "r": "\r"}
    return re.sub(r"\\(.)", lambda escape: escapes.get(escape[1], escape[1]), string, flags=re.DOTALL)


def _pieces(template: str) -> Iterator[tuple[str, str]]:
    """Yield the texts of a template, with an empty bracket, and the contents of `{{`, `{%` and `{#`, with that bracket.

    Texts lack the whitespace that Jinja removes with the options of transformers (trim_blocks, lstrip_blocks): a
    newline after a block, spaces before a block that begins a line, and whitespace next to a `-`.
    """
    position, line_begins, strip = 0, True, False
    while opening := _OPENING.search(template, position):
        bracket, text = opening[0], template[position : opening.start()]
        end = template.find(_CLOSING[bracket], opening.end())
        if end < 0:  # jinja2 may see it closed, as in a string: no simple template
            yield "{%", "unclosed"
            return
        body, is_block = template[opening.end() : end], bracket != "{{"
        if is_block:
            text = _without_indent(text, line_begins)
        text = text.lstrip() if strip else text
        yield "", text.rstrip() if body.startswith("-") else text
        yield bracket, body.removeprefix("-").removesuffix("-").strip()
        strip, position = body.endswith("-"), end + 2
        line_begins = is_block and template.startswith("\n", position)
        position += line_begins
    text = template[position:].removesuffix("\n")
    yield "", text.lstrip() if strip else text


def _without_indent(text: str, line_begins: bool) -> str:
    last_line = text.rfind("\n") + 1
    return text[:last_line] if (last_line or line_begins) and not text[last_line:].strip() else text
