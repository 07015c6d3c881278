"""The text of the evaluation commands, and the table of their results, shared by all frameworks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared_tokenizer.data.evaluation import Evaluation
from shared_tokenizer.settings import check_bounds, setting
from shared_tokenizer.sources.documents import cut_document, is_validation, read_documents
from shared_tokenizer.sources.file_rules import FileRules
from shared_tokenizer.sources.row_rules import RowRules


@dataclass(frozen=True, kw_only=True)
class EvaluationText:
    """Settings that choose the evaluated text and its windows. Raises ValueError on a value out of range."""

    text_column: str | None = None
    """Column that holds the text; by default one with a well-known name."""
    roles: dict[str, str] = setting(factory=dict)
    """Who speaks under another name in messages, for example {"customer": "user"}: system, user or assistant."""
    document_characters: int = setting(0, at_least=0)
    """Characters of a document, about, as in prepare_data.py: longer texts are cut. 0 cuts no text."""
    held_out: float | None = setting(None, more_than=0, at_most=1)
    """Fraction of the documents to evaluate on: the same documents that prepare_data.py holds out with this
    val_fraction and the same document_characters. By default all."""
    seq_len: int = setting(256, at_least=1)
    """Tokens per window; at most the context length of the model."""
    batch_size: int = setting(8, at_least=1)
    """Windows per batch."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def read(self, sources: Sequence[str]) -> list[str]:
        """Return the texts of files, folders or `stdlib`. Raises ValueError where there is none, or none held out."""
        # All of a data set is evaluated on, or what a preparation holds out of it.
        choice = FileRules(splits="ignore" if self.held_out is None else "auto")
        documents = (
            document
            for whole in read_documents(sources, RowRules(self.text_column, self.roles), choice, print)
            for document in cut_document(whole, self.document_characters)
        )
        if self.held_out is not None:
            documents = (document for document in documents if is_validation(document, self.held_out))
        texts = [document.text for document in documents]
        if not texts:
            raise ValueError(
                f"held_out: found no document in a fraction of {self.held_out}; give more documents, or cut long ones "
                "with document_characters"
            )
        return texts


def evaluation_table(found: Mapping[str, Evaluation]) -> Any:
    """Return a rich table of evaluations on the same text, one row per model."""
    from rich.table import Table

    table = Table()
    for heading in ("model", "tokens", "nats per token", "perplexity", "bits per byte"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for name, each in found.items():
        table.add_row(
            name, f"{each.tokens:,}", f"{each.loss:.4f}", f"{each.perplexity:.2f}", f"{each.bits_per_byte:.4f}"
        )
    return table
