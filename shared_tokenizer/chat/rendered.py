"""Chats that are written out as texts, with the markers of a chat format -> turns, or ids with special tokens."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from shared_tokenizer.chat.formats import ChatFormatName
from shared_tokenizer.chat.messages import Message, encode_text_part
from shared_tokenizer.chat.parse import ROLES, check_reply, system_message
from shared_tokenizer.tokenizers.known_tokens import CHAT_MARKERS as SPECIAL_MARKERS
from shared_tokenizer.tokenizers.tokenizer import Tokenizer

# The begin and end of a text in the tokenizers of released models.
EDGES = ("<s>", "</s>", "<bos>", "<eos>", "<|begin_of_text|>", "<|end_of_text|>", "<|endoftext|>", "<|startoftext|>")
# Spellings that frame turns and hardly stand in a text by chance. They are special tokens somewhere.
CHAT_MARKERS = (
    *SPECIAL_MARKERS,
    "<<SYS>>",
    "<|endoftext|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|prompter|>",
)
# What a special token of some tokenizer looks like.
_TOKEN = re.compile(r"<\|[^|<>\s]{1,40}\|>")
_OTHER_ROLES = {"inst": "user", "/inst": "assistant", "instruction": "user", "response": "assistant"}
_SYSTEM_IN_USER = re.compile(r"\s*<<SYS>>\n?(.*?)\n?<</SYS>>\s*", re.DOTALL)
# The frame of a system message of Llama 3.1. Its date gives way to that of the format.
_LLAMA_3_1_PREAMBLE = re.compile(r"Cutting Knowledge Date: December 2023\nToday Date: [^\n]*(?:\n+|\Z)")
_EDGES_ONLY = re.compile(rf"(?:\s|{'|'.join(map(re.escape, EDGES))})*")


@dataclass(frozen=True)
class RenderedForm:
    """One form in which chats are written out.

    header: finds where a turn begins; its group is the role.
    ends: spellings of which one ends a turn. A turn that is not the last has one, but in forms of letters alone.
    hint: a text without it is not of this form.
    chat_format: the format of this project that writes the same, None where there is none.
    is_letters: True if the form needs no special token; then a text before the first turn is the system message.
    """

    name: str
    hint: str
    header: re.Pattern[str]
    ends: tuple[str, ...]
    chat_format: ChatFormatName | None
    is_letters: bool = False


FORMS = (
    RenderedForm("chatml", "<|im_start|>", re.compile(r"<\|im_start\|>(\w+)\n"), ("<|im_end|>",), "chatml"),
    RenderedForm(
        "llama-3",
        "<|start_header_id|>",
        re.compile(r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\n*"),
        ("<|eot_id|>", "<|end_of_text|>"),
        "llama-3",
    ),
    RenderedForm("gemma", "<start_of_turn>", re.compile(r"<start_of_turn>(\w+)\n"), ("<end_of_turn>",), "gemma"),
    RenderedForm("llama-2", "[/INST]", re.compile(r"\[(INST|/INST)\]"), ("</s>", *EDGES), "llama-2"),
    RenderedForm(
        "zephyr",
        "<|assistant|>",
        re.compile(r"<\|(system|user|assistant|prompter)\|>\n?"),
        ("</s>", "<|end|>", "<|endoftext|>"),
        "zephyr",
    ),
    RenderedForm(
        "bitnet",
        "<|eot_id|>",
        re.compile(r"(?:(?<=<\|eot_id\|>)|(?<=<\|begin_of_text\|>)|\A)(System|User|Assistant): "),
        ("<|eot_id|>",),
        "bitnet",
    ),
    RenderedForm(
        "alpaca",
        "### Response:",
        re.compile(r"(?:\A|(?<=\n))### (Instruction|Input|Response):[ \n]?"),
        EDGES,
        "alpaca",
        is_letters=True,
    ),
    RenderedForm("guanaco", "### Assistant:", re.compile(r"### (Human|Assistant): ?"), EDGES, None, is_letters=True),
    RenderedForm(
        "human and assistant",
        "Assistant:",
        re.compile(r"(?:\A\n*|\n\n)(Human|Assistant): ?"),
        EDGES,
        None,
        is_letters=True,
    ),
    RenderedForm(
        "vicuna", "ASSISTANT:", re.compile(r"(?:\A|(?<=\s)|(?<=>))(USER|ASSISTANT): ?"), EDGES, None, is_letters=True
    ),
)
_MARKERS = ("[INST]", *(form.hint for form in FORMS if not form.is_letters))


def parse_rendered(text: str) -> tuple[RenderedForm, tuple[Message, ...]] | None:
    """Return the form and the turns of a text that is one whole chat written out, None for any other text.

    Spaces around the contents of a form that writes them itself (llama-2) are its own, and so are the dates before a
    system message (llama-3.1). Nothing but the begin and end of a text may stand outside of the turns, so no other word
    of the text is lost.
    """
    for form in FORMS:
        if form.hint in text and (turns := _parse_form(text, form)) is not None:
            variant = _variant(text, form, turns)
            form = form if variant is None else replace(form, name=variant, chat_format=variant)
            return form, _without_preamble(turns) if variant == "llama-3.1" else turns
    return None


def _variant(text: str, form: RenderedForm, turns: tuple[Message, ...]) -> ChatFormatName | None:
    """Return the format of which a text is, where that differs from the format of its form in details."""
    if form.name == "llama-2" and "<<SYS>>" not in text and re.search(r"\S\[/INST\]", text):
        return "mistral-v0.3"
    if form.name == "llama-2" and _begins_once(text):
        return "mistral"
    if form.name == "llama-3" and turns[0].role == "system" and _LLAMA_3_1_PREAMBLE.match(turns[0].content):
        return "llama-3.1"
    if form.name == "zephyr" and not any(end in text.partition("<|assistant|>")[0] for end in form.ends):
        return "falcon3"
    if form.name == "chatml" and turns[-1].content.startswith("<think>\n"):
        return "qwen3"
    return None


def _without_preamble(turns: tuple[Message, ...]) -> tuple[Message, ...]:
    return system_message(_LLAMA_3_1_PREAMBLE.sub("", turns[0].content, count=1)) + turns[1:]


def _begins_once(text: str) -> bool:
    """Return True if only the first of several questions follows a begin token, and none frames a system message."""
    return text.count("[INST]") > 1 and text.count("<s>") < 2 and "<<SYS>>" not in text


def _parse_form(text: str, form: RenderedForm) -> tuple[Message, ...] | None:
    headers = list(form.header.finditer(text))
    if len(headers) < 2:
        return None
    if form.is_letters and any(marker in text for marker in _MARKERS):
        return None  # markers of another form would be learned as letters
    before = _without_edges(text[: headers[0].start()])
    if before and not form.is_letters:
        return None
    try:
        turns = list(system_message(before))
        for header, following in zip(headers, [*headers[1:], None], strict=True):
            end = len(text) if following is None else following.start()
            content = _content(text[header.end() : end], form, is_last=following is None)
            if content is None or not _add_turn(turns, header[1].lower(), content):
                return None
        check_reply(tuple(turns))
    except ValueError:
        return None
    return tuple(turns)


def _without_edges(text: str) -> str:
    """Return a text without the begin and end tokens and the whitespace around it."""
    start, end, before = _end_of_edges(text), len(text), -1
    while end != before and end > start:
        before = end
        end = next((end - len(edge) for edge in EDGES if text.endswith(edge, start, end)), end)
        while end > start and text[end - 1].isspace():
            end -= 1
    return text[start:end]


def _end_of_edges(text: str) -> int:
    found = _EDGES_ONLY.match(text)
    return found.end() if found is not None else 0


def _content(text: str, form: RenderedForm, *, is_last: bool) -> str | None:
    """Return the content of a turn, None where more than an end follows it or a marker is inside it."""
    found = min(((place, end) for end in form.ends if (place := text.find(end)) >= 0), default=None)
    if found is not None:
        place, end = found
        if _without_edges(text[place + len(end) :]):
            return None
        text = text[:place]
    elif not (is_last or form.is_letters or form.name in ("llama-2", "zephyr")):
        return None
    if form.is_letters or form.name in ("llama-2", "bitnet", "llama-3") or found is None:
        text = text.strip()
    is_marked = _TOKEN.search(text) or any(mark in text for mark in CHAT_MARKERS if mark != "<<SYS>>")
    return None if is_marked else text


def _add_turn(turns: list[Message], name: str, content: str) -> bool:
    """Add a turn. Return False where its role is unknown, its content blank, or a system message stands inside."""
    if name == "input" and turns and turns[-1].role == "user":
        turns.append(Message("user", f"{turns.pop().content}\n\n{content}"))
        return True
    role = ROLES.get(_OTHER_ROLES.get(name, name))
    if role == "user" and not turns and (found := _SYSTEM_IN_USER.match(content)):
        turns += system_message(found[1])
        content = content[found.end() :]
    if role is None or not content.strip() or "<<SYS>>" in content or (role == "system" and turns):
        return False
    turns.append(Message(role, content))
    return True


class Spellings:
    """Finder of special tokens of a tokenizer, and of the markers of chats, that are spelled out in texts."""

    def __init__(self, special_tokens: Iterable[str]):
        # A special token that could be an ordinary word says nothing about a text.
        own = {token for token in special_tokens if len(token) > 2 and not token.strip().replace("_", "").isalnum()}
        by_prefix: dict[str, list[str]] = {}
        for mark in sorted(own | set(CHAT_MARKERS), key=len, reverse=True):
            by_prefix.setdefault(mark[:3], []).append(re.escape(mark))
        # Most texts hold none of the few prefixes, and many not even their first letters, which are found much faster
        # than hundreds of reserved tokens.
        self._patterns = {prefix: re.compile("|".join(marks)) for prefix, marks in by_prefix.items()}
        by_letter: dict[str, list[str]] = {}
        for prefix in by_prefix:
            by_letter.setdefault(prefix[0], []).append(re.escape(prefix[1:]))
        self._begins = {
            letter: re.compile(f"{re.escape(letter)}(?:{'|'.join(rests)})") for letter, rests in by_letter.items()
        }

    def find(self, text: str) -> set[str]:
        """Return the spellings that a text holds. The begin and end of any tokenizer count at begin and end alone."""
        found = set[str]()
        if any(letter in text and begin.search(text) for letter, begin in self._begins.items()):
            for prefix, pattern in self._patterns.items():
                if prefix in text:
                    found.update(pattern.findall(text))
        start, stop = text[:100].lstrip(), text[-100:].rstrip()
        return found.union(edge for edge in EDGES if start.startswith(edge) or stop.endswith(edge))


def find_plain_form(text: str) -> str | None:
    """Return the name of the form of letters alone in which a text is a whole chat, None for any other text."""
    if not any(form.is_letters and form.hint in text for form in FORMS):
        return None
    found = parse_rendered(text)
    return found[0].name if found is not None and found[0].is_letters else None


def encode_rendered(text: str, tokenizer: Tokenizer) -> list[int]:
    """Return the ids of a text in which special tokens are spelled out, with one begin and one end token.

    Raises ValueError where a marker of chats, or what looks like a special token, is none of the tokenizer's and would
    become letters.
    """
    special = tokenizer.special_tokens
    marks = (*(mark for mark in CHAT_MARKERS if mark in text), *_TOKEN.findall(text))
    foreign = [mark for mark in marks if mark not in special]
    if foreign:
        raise ValueError(
            f"text_format rendered: found {foreign[0]!r}, no special token of this tokenizer, expected a whole chat of "
            f"a known form ({', '.join(form.name for form in FORMS)}); correct the row, or take --text_format letters"
        )
    ids: list[int] = []
    pattern = "|".join(map(re.escape, sorted(special, key=len, reverse=True)))
    ends = tuple(token for token, number in special.items() if number == tokenizer.eos_id)
    text = text.rstrip() if text.rstrip().endswith(ends) else text
    for part in re.split(f"({pattern})", text) if pattern else [text]:
        if part in special:
            ids.append(special[part])
        elif part:
            ids += encode_text_part(part, tokenizer)
    start = tokenizer.start_ids
    ids = ids if ids[: len(start)] == start else [*start, *ids]
    return ids if ids[-1:] == [tokenizer.eos_id] else [*ids, tokenizer.eos_id]
