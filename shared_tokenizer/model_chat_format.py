"""The chat format of a model: named by the user, or read from the chat template of the adapters or the model."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from shared_tokenizer.chat.chat_format import ChatFormat
from shared_tokenizer.chat.formats import CHAT_FORMATS, named_chat_format
from shared_tokenizer.chat.framed import FramedFormat
from shared_tokenizer.chat.messages import Message, encode_generation_prompt, stop_ids
from shared_tokenizer.chat.template import disagreement, read_chat_format, read_chat_template
from shared_tokenizer.load import find_chat_format, find_chat_template, log_line
from shared_tokenizer.tokenizers.tokenizer import Tokenizer


def choose_chat_format(
    model: Path,
    tokenizer: Tokenizer,
    *,
    choice: str = "auto",
    adapter_path: str | Path | None = None,
    note: Callable[[str], None] = log_line,
) -> ChatFormat:
    """Return the chat format named `choice`; auto reads it from the adapters' chat template, else from the model's.

    `note` receives a warning where the templates are known to write another format than the one that is named; by
    default it is printed to standard error. Raises ValueError if the name is unknown, if auto finds no template or one
    that cannot write a question, or if the tokenizer lacks the format's tokens.
    """
    if choice == "auto":
        found = _from_templates(model, tokenizer, adapter_path)
    else:
        found = named_chat_format(choice)
        if warning := _disagreement(model, tokenizer, adapter_path, found):
            note(warning)
    encode_generation_prompt((Message("user", "a"),), tokenizer, found)
    stop_ids(tokenizer, found)
    return found


def reply_stop_ids(model: Path, tokenizer: Tokenizer, adapter_path: str | Path | None = None) -> Sequence[int]:
    """Return the ids that end a text of a model: of one that was trained on chats also those that end a turn."""
    with contextlib.suppress(ValueError):  # no template, or one that cannot be used
        return stop_ids(tokenizer, choose_chat_format(model, tokenizer, adapter_path=adapter_path))
    return tokenizer.stop_ids


def _disagreement(
    model: Path, tokenizer: Tokenizer, adapter_path: str | Path | None, named: FramedFormat
) -> str | None:
    with contextlib.suppress(ValueError):  # a template that cannot be read says nothing about the name
        template = None if adapter_path is None else read_chat_template(Path(adapter_path))
        template = template or find_chat_template(model, tokenizer)
        return None if template is None else disagreement(template, named)
    return None


def _from_templates(model: Path, tokenizer: Tokenizer, adapter_path: str | Path | None) -> ChatFormat:
    found = None if adapter_path is None else read_chat_format(Path(adapter_path))
    found = found or find_chat_format(model, tokenizer)
    if found is None:
        raise ValueError(
            f"{model}: found no chat template, expected one: the model was probably not trained on chats; continue "
            f"text with `generate`, or name the chat_format it was trained with: {', '.join(CHAT_FORMATS)}"
        )
    return found
