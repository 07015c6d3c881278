"""Settings of a preparation: text -> token shards."""

import os
from dataclasses import dataclass, field

from shared_tokenizer.chat.formats import ChatFormatChoice, named_chat_format
from shared_tokenizer.preparation.executors import Executor
from shared_tokenizer.preparation.prepare_slice import PrepareOptions
from shared_tokenizer.tokenizers.train import TRAIN_SIZE, ModelType


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Settings of `prepare`. Raises ValueError on a value out of range and on two settings that exclude each other."""

    output_dir: str
    """Directory of token shards to create: a local path, or the URL of any filesystem that fsspec knows. A finished
    directory with the same content is kept."""
    input: list[str] = field(default_factory=list)
    """Text files and folders of them, or stdlib: the source code of the Python standard library."""
    tokenizer: str | None = None
    """Tokenizer to use: its directory, or one file of that."""
    vocab_size: int | None = None
    """Number of tokens of a tokenizer to train on the input, in place of a given one."""
    model_type: ModelType = "bpe"
    """Kind of tokenizer to train."""
    special_tokens: list[str] = field(default_factory=list)
    """Additional special tokens of the tokenizer to train."""
    train_size: int = TRAIN_SIZE
    """Bytes of text to train a tokenizer on: a sample of the input, chosen by hash."""
    text_column: str | None = None
    """Column that holds the text or the messages; by default one with a well-known name."""
    chat_format: ChatFormatChoice = "auto"
    """Format in which chats are written as tokens; auto takes the format of the tokenizer's chat template, or chatml if
    it has none."""
    hub: str | None = None
    """Dataset of the Hugging Face hub (or a folder in its layout) to read in place of input."""
    hub_config: str | None = None
    """Configuration of the hub dataset, for example sample-10BT."""
    hub_split: str = "train"
    """Split of the hub dataset."""
    hub_streaming: bool = True
    """True reads the hub dataset over the network; false downloads it first and keeps the copy."""
    val_fraction: float = 0.05
    """Fraction of the documents that is held out for validation, chosen by hash."""
    document_characters: int = 0
    """Characters of a document, about: longer texts are cut at line ends, so that a part of one long file can be held
    out. 0 cuts no text."""
    min_text_length: int = 1
    """Characters of the shortest document that is kept."""
    dedup: bool = False
    """True leaves out every exact copy of an earlier document."""
    max_samples: int | None = None
    """Documents after which the preparation stops."""
    max_tokens: int | None = None
    """Tokens of the result at most: the preparation stops before the document that would exceed them."""
    max_bad_rows: int = 0
    """Unreadable rows that are skipped; one more stops the preparation with an error."""
    shard_tokens: int = 50_000_000
    """Tokens per shard file, at least: a shard ends with the document that reaches this number."""
    num_workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Processes on this machine; by default one per processor core."""
    executor: Executor = "local"
    """Workers: processes on this machine (local), or a running Ray cluster that sees the same files (ray)."""

    def __post_init__(self) -> None:
        if (self.tokenizer is None) == (self.vocab_size is None):
            raise ValueError(
                "tokenizer, vocab_size: expected one of the two; give a tokenizer to use, or a size to train one"
            )
        if bool(self.input) == bool(self.hub):
            raise ValueError("input, hub: expected one of the two; give files to read, or a dataset of the hub")
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"val_fraction: found {self.val_fraction}, expected more than 0 and less than 1")
        for name in ("train_size", "min_text_length", "shard_tokens", "num_workers", "max_samples", "max_tokens"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}: found {value}, expected at least 1")
        for name in ("document_characters", "max_bad_rows"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected 0 or more")
        if self.chat_format != "auto":
            named_chat_format(self.chat_format)
        if self.tokenizer is not None and self.special_tokens:
            raise ValueError("special_tokens: has no effect on a given tokenizer; train one with vocab_size instead")

    @property
    def input_name(self) -> str:
        """Return the name of the input for messages."""
        return self.hub or " ".join(self.input)

    @property
    def options(self) -> PrepareOptions:
        """Return the settings that every slice needs."""
        return PrepareOptions(**{name: getattr(self, name) for name in PrepareOptions.__dataclass_fields__})
