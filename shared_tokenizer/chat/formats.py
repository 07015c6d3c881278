"""The chat formats that are known by name."""

from typing import Literal, TypeAlias

from shared_tokenizer.chat.chatml_formats import CHATML, QWEN_2_5, QWEN_3, QWEN_3_NO_THINK, SMOLLM2
from shared_tokenizer.chat.framed import FramedFormat
from shared_tokenizer.chat.llama_formats import LLAMA_2, LLAMA_3, LLAMA_3_1, MISTRAL, MISTRAL_V0_3
from shared_tokenizer.chat.other_formats import ALPACA, BITNET, FALCON_3, GEMMA, ZEPHYR

ChatFormatName: TypeAlias = Literal[
    "chatml",
    "smollm2",
    "qwen2.5",
    "qwen3",
    "qwen3-no-think",
    "llama-2",
    "llama-3",
    "llama-3.1",
    "mistral",
    "mistral-v0.3",
    "zephyr",
    "falcon3",
    "alpaca",
    "bitnet",
    "gemma",
]
# The choices of the commands; auto follows the chat template of the tokenizer.
ChatFormatChoice: TypeAlias = Literal["auto", ChatFormatName]

CHAT_FORMATS: dict[str, FramedFormat] = {
    known.name: known
    for known in (
        CHATML,
        SMOLLM2,
        QWEN_2_5,
        QWEN_3,
        QWEN_3_NO_THINK,
        LLAMA_2,
        LLAMA_3,
        LLAMA_3_1,
        MISTRAL,
        MISTRAL_V0_3,
        ZEPHYR,
        FALCON_3,
        ALPACA,
        BITNET,
        GEMMA,
    )
}


def named_chat_format(name: str) -> FramedFormat:
    """Return the format of a name. Raises ValueError with the known names."""
    if name not in CHAT_FORMATS:
        raise ValueError(f"chat format: found {name!r}, expected one of {', '.join(CHAT_FORMATS)}")
    return CHAT_FORMATS[name]
