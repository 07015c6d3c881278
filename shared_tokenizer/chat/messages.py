"""Conversations -> ids and a loss mask.

Special tokens are inserted by id, so `<|im_end|>` in a message stays the text of ten characters.

transformers returns the same ids with the template of `write_chat_template`, with three exceptions:
- It parses special tokens that are spelled out in messages.
- It encodes the header of an assistant's turn together with the content. Here the header is encoded alone, as it is
  before an answer is generated. The ids differ for a byte-level tokenizer that joins the line end of the header to
  whitespace at the start of the content. Tokenizers that this project trains end a token at every line end.
- For a tokenizer that puts a space before a text, it puts one before every text between special tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from shared_tokenizer.chat.chat_format import ChatFormat, Edge, Message, Part, Piece
from shared_tokenizer.tokenizers.tokenizer import Tokenizer


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
    _check_any(messages)
    return encode_pieces(chat_format.conversation(messages, tokenizer), tokenizer, chat_format)


def encode_generation_prompt(messages: Sequence[Message], tokenizer: Tokenizer, chat_format: ChatFormat) -> list[int]:
    """Return the ids of a conversation and the header of the next assistant's turn.

    They are a prefix of `encode_chat`, except in formats whose last turns look different from earlier ones (qwen3,
    qwen3-no-think, mistral-v0.3, some templates). Raises ValueError as `encode_chat` does, and where the last message
    is not the user's.
    """
    _check_any(messages)
    if messages[-1].role != "user":
        found = messages[-1].role
        raise ValueError(f"messages: found {found} as the role of the last message, expected user")
    return encode_pieces(chat_format.prompt(messages, tokenizer), tokenizer, chat_format).ids


def stop_ids(tokenizer: Tokenizer, chat_format: ChatFormat) -> list[int]:
    """Return the ids that end a turn of the assistant, and those that end a text."""
    ends = (_resolved(part, tokenizer, chat_format) for part in chat_format.ends(tokenizer))
    return list(dict.fromkeys([*(end for end in ends if isinstance(end, int)), *tokenizer.stop_ids]))


def _check_any(messages: Sequence[Message]) -> None:
    if not messages:
        raise ValueError("messages: found none, expected a conversation")


def encode_pieces(pieces: Sequence[Piece], tokenizer: Tokenizer, chat_format: ChatFormat) -> EncodedChat:
    """Return the ids of the parts of a conversation; see `encode_chat`."""
    if pieces[0].part is not Edge.BEGIN:
        pieces = [Piece(Edge.BEGIN), *pieces]
    resolved = ((_resolved(piece.part, tokenizer, chat_format), piece) for piece in pieces)
    written = [(part, piece) for part, piece in resolved if part != ""]
    ids, loss_mask, after_text = list[int](), list[bool](), False
    # Adjacent texts of one writer are encoded as one text, as transformers does it. The assistant's stay apart from its
    # header also where they are not learned: the ids are those of the answer that was generated.
    for (is_text, *_), run in groupby(
        written,
        key=lambda part: (isinstance(part[0], str), part[1].by_assistant, part[1].in_loss, part[1].stands_apart),
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
