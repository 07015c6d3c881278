"""Train a tokenizer on text."""

from dataclasses import dataclass
from pathlib import Path

from jaxlm.spec.command_line import run_command
from jaxlm.spec.manifest import sealed_directory
from shared_tokenizer.documents import read_documents
from shared_tokenizer.train import train_tokenizer


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """What to train on."""

    input: list[str]
    """Text files, folders of them, or stdlib, the Python standard library's own source."""
    output_dir: str
    """Tokenizer directory to create."""
    vocab_size: int = 2048
    """Tokens in all, the special ones and the 256 bytes among them."""


def main(config: TokenizerConfig) -> None:
    """Train a sentencepiece BPE whose decoding gives back every text exactly."""
    with sealed_directory(Path(config.output_dir)) as directory:
        documents = list(read_documents(config.input))
        tokenizer = train_tokenizer((document.text for document in documents), config.vocab_size)
        tokenizer.save(directory)
    print(f"{config.output_dir}: {tokenizer.vocab_size} tokens, fingerprint {tokenizer.fingerprint[:12]}")


if __name__ == "__main__":
    run_command(main, TokenizerConfig)
