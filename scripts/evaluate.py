"""Loss, perplexity and bits per byte of models on the same text."""

from dataclasses import dataclass

from jaxlm.spec.command_line import make_console, quiet_libraries, run_command

quiet_libraries()

from rich.table import Table  # noqa: E402

from jaxlm.evaluate import evaluate_text  # noqa: E402
from jaxlm.load import load_model  # noqa: E402
from shared_tokenizer.documents import cut_document, is_validation, read_documents  # noqa: E402


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What to evaluate, on what."""

    model: list[str]
    """Run directories or artifacts, compared in one table."""
    input: list[str]
    """Files (text, jsonl, parquet, csv, ...), folders of them, or stdlib, the Python standard library's own source."""
    text_column: str | None = None
    """Column that holds the text, where it is not found by itself."""
    document_characters: int = 0
    """Cut texts into documents of about this many characters, as prepare_data.py did with the same setting."""
    held_out: float | None = None
    """Evaluate only on this fraction of the documents: what prepare_data.py held out with the same val_fraction and
    document_characters."""
    seq_len: int = 256
    """Tokens per window."""
    batch_size: int = 8
    """Windows at a time."""

    def __post_init__(self) -> None:
        for name in ("seq_len", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected at least 1")
        if self.held_out is not None and not 0 < self.held_out <= 1:
            raise ValueError(f"held_out: found {self.held_out}, expected more than 0 and at most 1")


def main(config: EvaluateConfig) -> None:
    """Evaluate models on text: nats per token, perplexity, and bits per byte, which no tokenizer can flatter."""
    documents = (
        document
        for whole in read_documents(config.input, config.text_column)
        for document in cut_document(whole, config.document_characters)
    )
    if config.held_out is not None:
        documents = (document for document in documents if is_validation(document, config.held_out))
    texts = [document.text for document in documents]
    if not texts:
        raise ValueError(f"held_out: found no document in a fraction of {config.held_out}; give more text")
    table = Table()
    for heading in ("model", "tokens", "nats per token", "perplexity", "bits per byte"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for path in config.model:
        model, params, tokenizer = load_model(path)
        if tokenizer is None:
            raise ValueError(f"{path}: found no tokenizer, so text cannot be evaluated")
        found = evaluate_text(model, params, tokenizer, texts, config.seq_len, config.batch_size)
        table.add_row(
            path,
            f"{found.tokens:,}",
            f"{found.loss:.4f}",
            f"{found.perplexity:.2f}",
            f"{found.bits_per_byte:.4f}",
        )
    make_console().print(table)


if __name__ == "__main__":
    run_command(main, EvaluateConfig)
