"""The command `jaxlm tokenizer`: text -> tokenizer."""

from dataclasses import dataclass, field
from pathlib import Path

from jaxlm.common.next_command import next_command
from shared_tokenizer.manifest import sealed_directory
from shared_tokenizer.settings import check_bounds, setting
from shared_tokenizer.sources.documents import read_documents
from shared_tokenizer.sources.row_rules import RowRules
from shared_tokenizer.tokenizers.train import TRAIN_SIZE, ModelType, sample_texts, train_tokenizer


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """The text and the size of a tokenizer."""

    input: list[str]
    """Files (text, jsonl, parquet, csv, ...), folders of them, or stdlib, the Python standard library's own source."""
    output_dir: str
    """Tokenizer directory to create."""
    vocab_size: int = 2048
    """Tokens in all, the special ones and the 256 bytes among them."""
    model_type: ModelType = "bpe"
    """bpe or unigram."""
    special_tokens: list[str] = field(default_factory=list)
    """Special tokens of your own, after the built-in ones."""
    text_column: str | None = None
    """Column that holds the text, where it is not found by itself."""
    roles: dict[str, str] = field(default_factory=dict)
    """Who speaks under another name in messages, for example {"customer": "user"}: system, user or assistant."""
    train_size: int = setting(TRAIN_SIZE, at_least=1)
    """Bytes of text to train on, chosen by their hash where the input holds more."""

    def __post_init__(self) -> None:
        check_bounds(self)


def main(config: TokenizerConfig) -> None:
    """Train a sentencepiece tokenizer whose decoding gives back every text exactly."""
    with sealed_directory(Path(config.output_dir)) as directory:
        documents = read_documents(config.input, RowRules(config.text_column, config.roles), log=print)
        texts = sample_texts((document.text for document in documents if document.split != "val"), config.train_size)
        tokenizer = train_tokenizer(
            texts, config.vocab_size, model_type=config.model_type, special_tokens=config.special_tokens
        )
        tokenizer.save(directory)
    print(f"{config.output_dir}: {tokenizer.vocab_size} tokens, fingerprint {tokenizer.fingerprint[:12]}")
    words = ("--input", *config.input, "--tokenizer", config.output_dir, "--output_dir", "...")
    print(f"next: {next_command('prepare', *words)}")
