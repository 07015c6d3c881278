"""The text of the evaluation commands, and the table of their results, shared by all frameworks."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from shared_tokenizer.chat.chat_format import ChatFormat, Message
from shared_tokenizer.chat.formats import ChatFormatChoice
from shared_tokenizer.data.evaluation import Evaluation
from shared_tokenizer.manifest import refuse_inside_sealed, write_file
from shared_tokenizer.model_chat_format import choose_chat_format
from shared_tokenizer.settings import check_bounds, setting
from shared_tokenizer.sources.documents import Document, cut_document, is_validation, read_documents
from shared_tokenizer.sources.file_rules import FileRules
from shared_tokenizer.sources.preferences import Preference
from shared_tokenizer.sources.row_rules import RowRules
from shared_tokenizer.tokenizers.tokenizer import Tokenizer

# A text, or the messages of a chat.
Content: TypeAlias = str | tuple[Message, ...]


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

    def read(self, sources: Sequence[str]) -> list[Content]:
        """Return the texts and chats of files, folders or `stdlib`.

        Raises ValueError where there is none, or none held out, and on pairs of answers.
        """
        # All of a data set is evaluated on, or what a preparation holds out of it.
        choice = FileRules(splits="ignore" if self.held_out is None else "auto")
        documents = (
            document
            for whole in read_documents(sources, RowRules(self.text_column, self.roles), choice, print)
            for document in cut_document(whole, self.document_characters)
        )
        if self.held_out is not None:
            documents = (document for document in documents if is_validation(document, self.held_out))
        contents = [_content(document) for document in documents]
        if not contents:
            raise ValueError(
                f"held_out: found no document in a fraction of {self.held_out}; give more documents, or cut long ones "
                "with document_characters"
            )
        return contents


def _content(document: Document) -> Content:
    if isinstance(document.content, Preference):
        raise ValueError(
            f"{document.name}: found a pair of answers, expected a text or a chat; --text_column chosen evaluates the "
            "chosen answers"
        )
    return document.content


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(EvaluationText):
    """Settings of the commands that evaluate."""

    input: list[str] = setting(factory=list, formerly="data", also="data")
    """Files (text, chats, jsonl, parquet, csv, ...), folders of them, or stdlib,
    the Python standard library's own source. Not needed with tasks."""
    chat_format: ChatFormatChoice = "auto"
    """Chat format that chats are written in, of which the answers are scored; auto is the model's own."""
    json: str | None = None
    """File to write the numbers to, as JSON, with all settings and the identity of
    each model."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.json is not None:
            refuse_inside_sealed(Path(self.json))
            if not Path(self.json).parent.is_dir() or Path(self.json).is_dir():
                raise ValueError(f"json: found {self.json!r}, expected a file in a directory that exists")

    def find_chat_format(
        self, contents: Sequence[Content], path: str, tokenizer: Tokenizer, adapter_path: str | None = None
    ) -> ChatFormat | None:
        """Return the format that the chats among contents are scored in.

        None where there are no chats, or the model has no format; then a line says that they are scored as texts.
        Raises ValueError where the tokenizer lacks the tokens of the named format, or there are no chats for it.
        """
        if all(isinstance(content, str) for content in contents):
            if self.chat_format != "auto":
                raise ValueError(f"chat_format: found {self.chat_format!r}, but no chats, which alone it changes")
            return None
        try:
            return choose_chat_format(Path(path), tokenizer, choice=self.chat_format, adapter_path=adapter_path)
        except ValueError as error:
            if self.chat_format != "auto":
                raise
            print(f"chats are scored as plain text, with the questions: {error}")
            return None


def as_texts(contents: Iterable[Content]) -> list[str]:
    """Return each content as a text: of a chat the contents of its messages, one per line."""
    return [
        content if isinstance(content, str) else "\n".join(message.content for message in content)
        for content in contents
    ]


def evaluation_table(found: Mapping[str, Evaluation]) -> Any:
    """Return a rich table of evaluations on the same text, one row per model."""
    from rich.table import Table

    table = Table()
    headings = ["model", "tokens", "nats per token", "perplexity", "bits per byte"]
    has_scores = all(each.accuracy is not None for each in found.values())
    for heading in headings + (["likeliest", "unknown"] if has_scores else []):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for name, each in found.items():
        numbers = [f"{each.tokens:,}", f"{each.loss:.4f}", f"{each.perplexity:.2f}", f"{each.bits_per_byte:.4f}"]
        if each.accuracy is not None and each.unknown_share is not None:
            numbers += [f"{each.accuracy:.1%}", f"{each.unknown_share:.2%}"]
        table.add_row(name, *numbers)
    return table


def write_evaluations(
    path: Path,
    found: Mapping[str, Evaluation],
    settings: EvaluationSettings,
    models: Mapping[str, Mapping[str, Any]],
    documents: int,
) -> None:
    """Write the numbers of each model as JSON, with the settings and what is known of each of the `models`.

    Raises OSError where the file cannot be written.
    """
    numbers = {name: _numbers(each) for name, each in found.items()}
    content = {
        "input": settings.input,
        "documents": documents,
        "settings": dataclasses.asdict(settings),
        "models": {name: {**about, **numbers.get(name, {})} for name, about in models.items()},
    }
    write_file(path, (json.dumps(content, indent=2) + "\n").encode())


def _numbers(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "nats_per_token": evaluation.loss,
        "perplexity": evaluation.perplexity,
        "bits_per_byte": evaluation.bits_per_byte,
        "tokens": evaluation.tokens,
        "bytes": evaluation.text_bytes,
        "likeliest_share": evaluation.accuracy,
        "unknown_share": evaluation.unknown_share,
    }
