"""Text -> token shards, training a tokenizer first if none is given."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxlm.spec.command_line import run_command
from jaxlm.spec.manifest import sealed_directory, verify_manifest
from shared_tokenizer.documents import Document, cut_documents, read_documents
from shared_tokenizer.shards import MANIFEST, read_manifest, write_shards
from shared_tokenizer.tokenizer import Tokenizer
from shared_tokenizer.train import train_tokenizer


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """What to prepare. Raises ValueError unless just one of tokenizer and vocab_size is given."""

    input: list[str]
    """Text files, folders of them, or stdlib, the Python standard library's own source."""
    output_dir: str
    """Directory of token shards to create; one that holds the same already is kept as it is."""
    tokenizer: str | None = None
    """Tokenizer directory to use."""
    vocab_size: int | None = None
    """Train a tokenizer of this many tokens on the input."""
    val_fraction: float = 0.05
    """Share of the documents held out for validation, chosen by their hash."""
    document_characters: int = 0
    """Cut texts at line ends into documents of about this many characters, so that a part of one long file can be
    held out; 0 leaves each file whole."""
    shard_tokens: int = 50_000_000
    """Tokens per shard file."""

    def __post_init__(self) -> None:
        if (self.tokenizer is None) == (self.vocab_size is None):
            raise ValueError("tokenizer, vocab_size: expected one of the two, a tokenizer to use or a size to train")
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"val_fraction: found {self.val_fraction}, expected more than 0 and less than 1")
        if self.shard_tokens < 1:
            raise ValueError(f"shard_tokens: found {self.shard_tokens}, expected at least 1")
        if self.document_characters < 0:
            raise ValueError(f"document_characters: found {self.document_characters}, expected 0 or more")


def main(config: PrepareConfig) -> None:
    """Turn text into token shards, training a tokenizer first if none is given."""
    output_dir = Path(config.output_dir)
    documents = list(read_documents(config.input))
    if config.document_characters:
        documents = list(cut_documents(documents, config.document_characters))
    options = _options(config, documents)
    if (output_dir / MANIFEST).is_file():
        _check_same(output_dir, options)
        print(f"{output_dir}: holds this corpus already")
        return
    with sealed_directory(output_dir) as directory:
        tokenizer = _tokenizer(config, documents)
        manifest = write_shards(
            directory,
            documents,
            tokenizer,
            val_fraction=config.val_fraction,
            shard_tokens=config.shard_tokens,
            options=options,
        )
        for split, found in manifest["splits"].items():
            if not found["tokens"]:
                raise ValueError(
                    f"{split} split: found none of the {len(documents)} documents in it; give more of them, another "
                    "val_fraction, or cut long files with --document_characters 10000"
                )
    for split, found in manifest["splits"].items():
        ratio = found["bytes"] / found["tokens"]
        print(f"{split}: {found['documents']:,} documents, {found['tokens']:,} tokens, {ratio:.2f} bytes per token")


def _tokenizer(config: PrepareConfig, documents: Iterable[Document]) -> Tokenizer:
    if config.tokenizer is not None:
        return Tokenizer.load(Path(config.tokenizer))
    assert config.vocab_size is not None
    return train_tokenizer((document.text for document in documents), config.vocab_size)


def _options(config: PrepareConfig, documents: Iterable[Document]) -> dict[str, Any]:
    """What the result depends on."""
    corpus = hashlib.sha256()
    for document in documents:
        corpus.update(hashlib.sha256(document.text.encode()).digest())
    fingerprint = Tokenizer.load(Path(config.tokenizer)).fingerprint if config.tokenizer else None
    return {
        "input": config.input,
        "input_sha256": corpus.hexdigest(),
        "tokenizer": fingerprint,
        "vocab_size": config.vocab_size,
        "val_fraction": config.val_fraction,
        "document_characters": config.document_characters,
        "shard_tokens": config.shard_tokens,
    }


def _check_same(output_dir: Path, options: dict[str, Any]) -> None:
    before = read_manifest(output_dir)["options"]
    for name, value in options.items():
        if before.get(name) != value:
            raise ValueError(
                f"{output_dir}: holds another corpus: {name} was {before.get(name)!r} and is now {value!r}; "
                "remove it or choose another output_dir"
            )
    verify_manifest(output_dir)


if __name__ == "__main__":
    run_command(main, PrepareConfig)
