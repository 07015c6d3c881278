"""Settings of a preparation: text -> token shards."""

import os
from dataclasses import dataclass

from shared_tokenizer.chat.formats import ChatFormatChoice, named_chat_format
from shared_tokenizer.preparation.executors import Executor
from shared_tokenizer.preparation.prepare_slice import PrepareOptions
from shared_tokenizer.readers.encodings import checked_encoding
from shared_tokenizer.settings import check_bounds, check_unchanged, setting
from shared_tokenizer.sources.column_names import COLUMNS_HELP
from shared_tokenizer.sources.file_rules import FileRules, Splits
from shared_tokenizer.sources.row_rules import RowRules, TextFormat
from shared_tokenizer.tokenizers.train import TRAIN_SIZE, ModelType


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The settings by which files become documents, the same wherever text or chats are read."""

    text_column: str | None = setting(None, group="data", basic=True, more_help=COLUMNS_HELP)
    """Column that holds the text or the messages, a.b for one inside another, or question+answer and
    question+context+answer; by default columns with known names."""
    roles: dict[str, str] = setting(factory=dict, group="data")
    """Who speaks under another name in messages, for example {"customer": "user"}: system, user or assistant."""
    text_format: TextFormat = setting("auto", group="data", basic=True)
    """Texts that spell special tokens (<s>, <|im_start|>): rendered encodes them as such, and reads a whole chat of a
    known form as its turns; letters learns them as letters; auto does that too, but stops where more than 1 % do."""
    chat_format: ChatFormatChoice = setting("auto", group="data", basic=True)
    """Format in which chats are written as tokens; auto takes that of the tokenizer's chat template, or chatml if
    it has none."""
    val_fraction: float = setting(0.05, group="data", basic=True, more_than=0, less_than=1)
    """Fraction of the documents that is held out for validation, chosen by hash."""
    document_characters: int = setting(0, group="data", basic=True, at_least=0)
    """Characters of a document, about: longer texts are cut at line ends, so that a part of one long file can be held
    out. 0 cuts none, except where too few texts would leave nothing to hold out."""
    max_bad_rows: int = setting(0, group="data", at_least=0)
    """Unreadable rows that are skipped; one more stops the command with an error. It stops in any case where more than
    a row is lost, as after a damaged place in a JSON array."""
    splits: Splits = setting("auto", group="data")
    """auto: files and folders named train, valid (validation, val, dev) and test next to each other are the splits of a
    data set: valid is held out in place of val_fraction, test is left out; ignore: the names mean nothing."""
    include: list[str] = setting(factory=list, group="data")
    """Patterns of the files in a folder to read, such as "*.jsonl" or "2024/*"; by default all of a known kind."""
    exclude: list[str] = setting(factory=list, group="data")
    """Patterns of files and folders in a folder to leave out."""
    encoding: str | None = setting(None, group="data")
    """Encoding of text files that are not UTF-8 and have no byte-order mark, for example cp1252."""

    @property
    def file_rules(self) -> FileRules:
        """Return the settings that choose files. Raises ValueError on an unknown encoding."""
        encoding = None if self.encoding is None else checked_encoding(self.encoding)
        return FileRules(self.splits, tuple(self.include), tuple(self.exclude), encoding)

    @property
    def rules(self) -> RowRules:
        """Return the settings that say what a row means."""
        return RowRules(self.text_column, self.roles, self.text_format)


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(TextConfig):
    """Settings of `prepare`. Raises ValueError on a value out of range and on two settings that exclude each other."""

    output_dir: str = setting(group="run", basic=True)
    """Directory of token shards to create: a local path, or the URL of any filesystem that fsspec knows. A finished
    directory with the same content is kept."""
    input: list[str] = setting(factory=list, group="data", basic=True)
    """Text files and folders of them, or stdlib: the source code of the Python standard library."""
    tokenizer: str | None = setting(None, group="tokenizer", basic=True)
    """Tokenizer to use: its directory or one file of that, or a run, a model or token shards that have one."""
    vocab_size: int | None = setting(None, group="tokenizer", basic=True)
    """Number of tokens of a tokenizer to train on the input, in place of a given one."""
    model_type: ModelType = setting("bpe", group="tokenizer")
    """Kind of tokenizer to train."""
    special_tokens: list[str] = setting(factory=list, group="tokenizer")
    """Additional special tokens of the tokenizer to train."""
    train_size: int = setting(TRAIN_SIZE, group="tokenizer", at_least=1)
    """Bytes of text to train a tokenizer on: a sample of the input, chosen by hash."""
    hub: str | None = setting(None, group="data", basic=True)
    """Dataset of the Hugging Face hub (or a folder in its layout) to read in place of input."""
    hub_config: str | None = setting(None, group="data")
    """Configuration of the hub dataset, for example sample-10BT."""
    hub_split: str = setting("train", group="data")
    """Split of the hub dataset."""
    hub_streaming: bool = setting(True, group="data")
    """True reads the hub dataset over the network; false downloads it first and keeps the copy."""
    min_text_length: int = setting(1, group="data", at_least=1)
    """Characters of the shortest document that is kept."""
    dedup: bool = setting(False, group="data", basic=True)
    """True leaves out every exact copy of an earlier document."""
    max_samples: int | None = setting(None, group="data", at_least=1)
    """Documents after which the preparation stops."""
    max_tokens: int | None = setting(None, group="data", basic=True, at_least=1)
    """Tokens of the result at most: the preparation stops before the document that would exceed them."""
    shard_tokens: int = setting(50_000_000, group="advanced", at_least=1)
    """Tokens per shard file, at least: a shard ends with the document that reaches this number."""
    num_workers: int = setting(factory=lambda: os.cpu_count() or 1, group="advanced", at_least=1)
    """Processes on this machine; by default one per processor core."""
    executor: Executor = setting("local", group="advanced")
    """Workers: processes on this machine (local), or a running Ray cluster that sees the same files (ray)."""

    def __post_init__(self) -> None:
        if (self.tokenizer is None) == (self.vocab_size is None):
            raise ValueError(
                "tokenizer, vocab_size: expected one of the two; give a tokenizer to use, or a size to train one"
            )
        if bool(self.input) == bool(self.hub):
            raise ValueError("input, hub: expected one of the two; give files to read, or a dataset of the hub")
        check_bounds(self)
        if self.hub:
            check_unchanged(self, ("splits", "include", "exclude", "encoding"), "with hub")
        _ = self.rules, self.file_rules  # raise
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
