"""Tokenizers and conversations for the tests of chats."""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import tokenizers

from shared_tokenizer.chat.formats import CHAT_FORMATS
from shared_tokenizer.chat.messages import EncodedChat, Message
from shared_tokenizer.tokenizers.tokenizer import Tokenizer

IM = ("<|im_start|>", "<|im_end|>")
HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
TURNS_OF_GEMMA = ("<start_of_turn>", "<end_of_turn>")
CONTROL = (*IM, *HEADERS, *TURNS_OF_GEMMA)
FORMATS = list(CHAT_FORMATS.values())


class Bytes(Tokenizer):
    """A tokenizer with one token per byte and per special token, so that ids can be written by hand."""

    def __init__(self, special: Iterable[str] = ("<s>", "</s>", *CONTROL), bos: str | None = "<s>"):
        self._special = {text: 256 + i for i, text in enumerate(special)}
        self._bos = bos

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_batch(self, texts: Sequence[str], *, num_threads: int | None = None) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def save(self, directory: Path) -> None:
        raise AssertionError("chats are rendered without any file")

    @property
    def vocab_size(self) -> int:
        return 256 + len(self._special)

    @property
    def bos_id(self) -> int | None:
        return None if self._bos is None else self._special[self._bos]

    @property
    def eos_id(self) -> int:
        return self._special["</s>"]

    @property
    def pad_id(self) -> int | None:
        return None

    @property
    def special_tokens(self) -> Mapping[str, int]:
        return self._special

    @cached_property
    def fingerprint(self) -> str:
        return "bytes"

    @cached_property
    def pieces(self) -> list[bytes]:
        return [*(bytes([byte]) for byte in range(256)), *(b"" for _ in self._special)]


class SpacedBytes(Bytes):
    """The same tokenizer with a space before every text, like those of Llama 2 and Mistral."""

    def encode(self, text: str) -> list[int]:
        return super().encode(f" {text}") if text else []

    @property
    def strips_first_space(self) -> bool:
        return True


def shown(encoded: EncodedChat, tokenizer: Tokenizer) -> str:
    """Return the ids as text, with special tokens spelled out and the loss mask between guillemets."""
    written = {token: text.encode() for text, token in tokenizer.special_tokens.items()}
    text, before = b"", False
    for token, in_loss in zip([*encoded.ids, None], [*encoded.loss_mask, False], strict=True):
        if in_loss != before:
            text += ("\u00ab" if in_loss else "\u00bb").encode()
        text += b"" if token is None else written.get(token, tokenizer.pieces[token])
        before = in_loss
    return text.decode()


CHAT = (
    Message("system", "Be brief."),
    Message("user", "Hi"),
    Message("assistant", "Hello!"),
    Message("user", "Bye"),
    Message("assistant", "See you"),
)
BY_HAND = {
    "chatml": (
        "<s><|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n\u00abHello!<|im_end|>\u00bb\n"
        "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n\u00abSee you<|im_end|>\u00bb\n"
    ),
    "llama-2": (
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST]\u00ab Hello! </s>\u00bb"
        "<s>[INST] Bye [/INST]\u00ab See you </s>\u00bb"
    ),
    "llama-3": (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n\u00abHello!<|eot_id|>\u00bb"
        "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n\u00abSee you<|eot_id|>\u00bb"
    ),
    "mistral": ("<s> [INST] Be brief.\n\nHi [/INST]\u00ab Hello!</s>\u00bb [INST] Bye [/INST]\u00ab See you</s>\u00bb"),
    "zephyr": (
        "<s><|system|>\nBe brief.</s>\n<|user|>\nHi</s>\n<|assistant|>\n\u00abHello!</s>\u00bb\n"
        "<|user|>\nBye</s>\n<|assistant|>\n\u00abSee you</s>\u00bb\n"
    ),
    "alpaca": (
        "<s>Be brief.\n\n### Instruction:\nHi\n\n### Response:\n\u00abHello!</s>\u00bb\n\n"
        "### Instruction:\nBye\n\n### Response:\n\u00abSee you</s>\u00bb\n\n"
    ),
}
BY_HAND["smollm2"] = BY_HAND["qwen2.5"] = BY_HAND["chatml"]
# The last answer without a thought has an empty one: written by the model, or by the header of its turn.
EMPTY_THOUGHT = "<think>\n\n</think>\n\n"
BY_HAND["qwen3"] = BY_HAND["chatml"].replace("\u00abSee", f"\u00ab{EMPTY_THOUGHT}See")
BY_HAND["qwen3-no-think"] = BY_HAND["chatml"].replace("\u00abSee", f"{EMPTY_THOUGHT}\u00abSee")
BY_HAND["llama-3.1"] = BY_HAND["llama-3"].replace(
    "Be brief.", "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\nBe brief."
)
BY_HAND["mistral-v0.3"] = (
    "<s>[INST] Hi[/INST]\u00ab Hello!</s>\u00bb[INST] Be brief.\n\nBye[/INST]\u00ab See you</s>\u00bb"
)
BY_HAND["falcon3"] = (
    "<s><|system|>\nBe brief.\n<|user|>\nHi\n<|assistant|>\n\u00abHello!</s>\u00bb\n"
    "<|user|>\nBye\n<|assistant|>\n\u00abSee you</s>\u00bb"
)
BY_HAND["gemma"] = (
    "<s><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\n\u00abHello!<end_of_turn>\u00bb\n"
    "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n\u00abSee you<end_of_turn>\u00bb\n"
)
BY_HAND["bitnet"] = (
    "<s>System: Be brief.<|eot_id|>User: Hi<|eot_id|>Assistant: \u00abHello!<|eot_id|>\u00bb"
    "User: Bye<|eot_id|>Assistant: \u00abSee you<|eot_id|>\u00bb"
)


TRAINED_ON = [*BY_HAND.values(), Path(__file__).read_text("utf-8")]


def save_byte_level(directory: Path, pattern: str | None) -> None:
    """Save a small byte-level BPE with the special tokens of all formats."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    split = [tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")] if pattern else []
    model.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([*split, byte_level])
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<s>", "</s>", *CONTROL],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(TRAINED_ON, trainer)
    model.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "add_bos_token": True,
        "clean_up_tokenization_spaces": False,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


# Where words end: as GPT-2 has it, and with line ends in one as Llama 3 has it.
PATTERNS = {"gpt-2": None, "line ends": r" ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"}
# GPT-2 cuts the two line ends at the end of these headers by what follows. The header of bitnet ends with a space,
# which every tokenizer joins to the word after it.
WITH_TWO_LINE_ENDS = ("llama-3", "llama-3.1", "qwen3-no-think")
KINDS = ("bpe", "unigram", *PATTERNS)
PAIRS = [
    (kind, name)
    for kind in KINDS
    for name in CHAT_FORMATS
    if not (kind == "gpt-2" and name in WITH_TWO_LINE_ENDS) and name != "bitnet"
]


def their_ids(other, chat: Sequence[Message], **options: object) -> list[int]:
    said = [{"role": message.role, "content": message.content} for message in chat]
    return other.apply_chat_template(said, tokenize=True, return_dict=False, **options)
