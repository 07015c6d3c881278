"""Conversations -> ids and a loss mask.

Special tokens are inserted by id, so `<|im_end|>` in a message stays the text of ten characters.

transformers returns the same ids with the template of `write_chat_template`, with three exceptions:
- It parses special tokens that are spelled out in messages.
- It encodes the header of an assistant's turn together with the content. Here the header is encoded alone, as it is
  before an answer is generated. The ids differ for a byte-level tokenizer that joins the line end of the header to
  whitespace at the start of the content. Tokenizers that this project trains end a token at every line end.
- For a tokenizer that puts a space before a text, it puts one before every text between special tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from shared_tokenizer.chat.formats import ChatFormat, Edge, Part, Role
from shared_tokenizer.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True)
class Message:
    """One turn of a conversation. Of the turns of the assistant, those that are not `learned` are context only."""

    role: Role
    content: str
    learned: bool = True


@dataclass(frozen=True)
class EncodedChat:
    """A conversation as ids, and a loss mask of the same length: True for the tokens that the assistant writes."""

    ids: list[int]
    loss_mask: list[bool]


def encode_chat(messages: Sequence[Message], tokenizer: Tokenizer, chat_format: ChatFormat) -> EncodedChat:
    """Return ids and loss mask of a conversation.

    Like every document it begins with the begin token where the tokenizer has one, even if an imported template
    writes none. The loss mask covers the assistant's contents and the tokens that end them, but for turns that are not
    `learned`. In formats whose markers may be text (`[INST]`, `<|user|>`, `### Response:`), a message that spells a
    marker writes that marker.
    Raises ValueError where the format cannot express the conversation, or the tokenizer lacks a special token of it.
    """
    return _encode(_conversation(messages, chat_format), tokenizer, chat_format)


def encode_generation_prompt(messages: Sequence[Message], tokenizer: Tokenizer, chat_format: ChatFormat) -> list[int]:
    """Return the ids of a conversation and the header of the next assistant's turn: a prefix of `encode_chat`.

    Raises ValueError as `encode_chat` does, and where the last message is not the user's.
    """
    if messages and messages[-1].role != "user":
        found = messages[-1].role
        raise ValueError(f"messages: found {found} as the role of the last message, expected user")
    prompt = [*_conversation(messages, chat_format), *_outside_loss(chat_format.assistant.header)]
    return _encode(prompt, tokenizer, chat_format).ids


def stop_ids(tokenizer: Tokenizer, chat_format: ChatFormat) -> list[int]:
    """Return the ids that end a turn of the assistant, and those that end a text."""
    ends = (_resolved(part, tokenizer, chat_format) for part in chat_format.assistant.end)
    return list(dict.fromkeys([*(end for end in ends if isinstance(end, int)), *tokenizer.stop_ids]))


def reply_content(text: str, chat_format: ChatFormat) -> str:
    """Return the content of a generated turn, without the spaces that the format puts around it."""
    if chat_format.trims:
        return text.strip()
    return text.removeprefix(chat_format.assistant.lead)


@dataclass(frozen=True)
class _Piece:
    """A part of a conversation: whether the assistant writes its tokens, and whether they are in the loss mask."""

    part: Part
    by_assistant: bool = False
    in_loss: bool = False


def _outside_loss(parts: Sequence[Part]) -> Iterator[_Piece]:
    return (_Piece(part) for part in parts)


def _conversation(messages: Sequence[Message], chat_format: ChatFormat) -> list[_Piece]:
    frames = {"system": chat_format.system, "user": chat_format.user, "assistant": chat_format.assistant}
    pieces = list[_Piece]()
    for turn in _turns(messages, chat_format):
        frame, by_assistant = frames[turn.role], turn.role == "assistant"
        pieces += _outside_loss(frame.header)
        pieces += (
            _Piece(part, by_assistant, by_assistant and turn.learned) for part in (frame.lead, turn.content, *frame.end)
        )
        pieces += _outside_loss(frame.footer)
    return pieces


def _turns(messages: Sequence[Message], chat_format: ChatFormat) -> list[Message]:
    """Return the turns of the format: with its default system message, or the system message folded into the first."""
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
    """Put the system message in front of the first user turn. Raises ValueError where that is no user turn."""
    system = ""
    if turns[0].role == "system":
        system = f"{_text(chat_format.system.header)}{turns[0].content}{_text(chat_format.system.footer)}"
        turns = turns[1:]
    if not turns or turns[0].role != "user":
        found = f"the {turns[0].role}'s" if turns else "none"
        raise ValueError(
            f"chat format {chat_format.name}: found the first turn to be {found}, expected the user's; "
            "leave such conversations out, or use a format that allows them: chatml, llama-3, zephyr"
        )
    return [Message("user", f"{system}{turns[0].content}"), *turns[1:]]


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


def _encode(pieces: Sequence[_Piece], tokenizer: Tokenizer, chat_format: ChatFormat) -> EncodedChat:
    if pieces[0].part is not Edge.BEGIN:
        pieces = [_Piece(Edge.BEGIN), *pieces]
    resolved = ((_resolved(piece.part, tokenizer, chat_format), piece) for piece in pieces)
    written = [(part, piece) for part, piece in resolved if part != ""]
    ids, loss_mask, after_text = list[int](), list[bool](), False
    # Adjacent texts of one writer are encoded as one text, as transformers does it. The assistant's stay apart from its
    # header also where they are not learned: the ids are those of the answer that was generated.
    for (is_text, *_), run in groupby(
        written, key=lambda part: (isinstance(part[0], str), part[1].by_assistant, part[1].in_loss)
    ):
        parts, found = zip(*run, strict=True)
        text = "".join(map(str, parts))
        ids += encode_text_part(text, tokenizer, after_text=after_text) if is_text else map(int, parts)
        loss_mask += [found[0].in_loss] * (len(ids) - len(loss_mask))
        after_text = is_text
    return EncodedChat(ids, loss_mask)


def _resolved(part: Part, tokenizer: Tokenizer, chat_format: ChatFormat) -> int | str:
    """Return a part as the id of a special token of this tokenizer, or as text."""
    if isinstance(part, str):
        return part
    if isinstance(part, Edge):
        token = tokenizer.bos_id if part is Edge.BEGIN else tokenizer.eos_id
        return "" if token is None else token
    token = tokenizer.special_tokens.get(part.text)
    if token is None and not part.text_will_do:
        raise ValueError(
            f"chat format {chat_format.name}: found no special token {part.text!r} in the tokenizer, whose special "
            f"tokens are {', '.join(list(tokenizer.special_tokens)[:10])}; use another chat format"
        )
    return part.text if token is None else token


def encode_text_part(text: str, tokenizer: Tokenizer, *, after_text: bool = False) -> list[int]:
    """Return the ids of a text between special tokens, or `after_text` after another text.

    Some tokenizers put a space before a text; it is left out after text and before a space. Raises ValueError where
    such a tokenizer joins the text to the one before it.
    """
    if not tokenizer.strips_first_space or not (after_text or text.startswith(" ")):
        return tokenizer.encode(text)
    line_end, ids = tokenizer.encode("\n"), tokenizer.encode(f"\n{text}")
    if ids[: len(line_end)] != line_end:
        raise ValueError(
            f"messages: found {text[:20]!r} after other text, which this tokenizer joins to the text before it; "
            "expected contents that do not begin with a line end"
        )
    return ids[len(line_end) :]
