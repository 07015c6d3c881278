"""What the evaluating commands of every framework have in common: the text that they take, and the table they show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared_tokenizer.data.evaluation import Evaluation
from shared_tokenizer.sources.documents import cut_document, is_validation, read_documents


@dataclass(frozen=True, kw_only=True)
class EvaluationText:
    """Which text of the sources is evaluated, and in what windows. Raises ValueError on a value out of range."""

    text_column: str | None = None
    """Column that holds the text, where it is not found by itself."""
    document_characters: int = 0
    """Cut texts into documents of about this many characters, as prepare_data.py did with the same setting; 0 leaves
    each text whole."""
    held_out: float | None = None
    """Evaluate only on this fraction of the documents: what prepare_data.py held out with the same val_fraction and
    document_characters."""
    seq_len: int = 256
    """Tokens per window, at most; a shorter context of the model makes them shorter."""
    batch_size: int = 8
    """Windows at a time."""

    def __post_init__(self) -> None:
        for name in ("seq_len", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected at least 1")
        if self.held_out is not None and not 0 < self.held_out <= 1:
            raise ValueError(f"held_out: found {self.held_out}, expected more than 0 and at most 1")

    def read(self, sources: Sequence[str]) -> list[str]:
        """The texts of files, folders or `stdlib`. Raises ValueError where a source holds none, or none is held out."""
        documents = (
            document
            for whole in read_documents(sources, self.text_column)
            for document in cut_document(whole, self.document_characters)
        )
        if self.held_out is not None:
            documents = (document for document in documents if is_validation(document, self.held_out))
        texts = [document.text for document in documents]
        if not texts:
            raise ValueError(
                f"held_out: found no document in a fraction of {self.held_out}; give more of them, or cut long ones "
                "with document_characters"
            )
        return texts


def evaluation_table(found: Mapping[str, Evaluation]) -> Any:
    """A rich table of evaluations on the same text, a row each."""
    from rich.table import Table

    table = Table()
    for heading in ("model", "tokens", "nats per token", "perplexity", "bits per byte"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for name, each in found.items():
        table.add_row(
            name, f"{each.tokens:,}", f"{each.loss:.4f}", f"{each.perplexity:.2f}", f"{each.bits_per_byte:.4f}"
        )
    return table
