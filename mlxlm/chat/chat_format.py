"""How a model was taught to see a chat: as the user says, or as its adapters or the model itself came with it."""

from pathlib import Path

from shared_tokenizer.chat.formats import CHAT_FORMATS, ChatFormat, named_chat_format
from shared_tokenizer.chat.messages import Message, encode_chat
from shared_tokenizer.chat.template import read_chat_format
from shared_tokenizer.load import find_chat_format
from shared_tokenizer.tokenizers.tokenizer import Tokenizer


def choose_chat_format(
    model: Path, tokenizer: Tokenizer, *, choice: str = "auto", adapter_path: str | Path | None = None
) -> ChatFormat:
    """The format of this name; auto is that of the adapters' chat template, or else of the model's.

    Raises ValueError where the name or the template is unknown, there is neither, or the tokenizer has not its tokens.
    """
    found = _from_templates(model, tokenizer, adapter_path) if choice == "auto" else named_chat_format(choice)
    encode_chat((Message("user", "a"), Message("assistant", "b")), tokenizer, found)
    return found


def _from_templates(model: Path, tokenizer: Tokenizer, adapter_path: str | Path | None) -> ChatFormat:
    found = None if adapter_path is None else read_chat_format(Path(adapter_path))
    found = found or find_chat_format(model, tokenizer)
    if found is None:
        raise ValueError(
            f"{model}: found no chat template, so it was hardly trained on chats, and `python -m mlxlm.generate` "
            f"continues text with it; where it was, name its chat_format: {', '.join(CHAT_FORMATS)}"
        )
    return found
