"""Datasets of the Hugging Face hub, downloaded or streamed by the `datasets` library, or folders in their layout."""

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from shared_tokenizer.sources.columns import Columns, find_columns
from shared_tokenizer.sources.documents import Document, Rejected, to_document
from shared_tokenizer.sources.files import SNIFFED_ROWS
from shared_tokenizer.sources.row_rules import RowRules
from shared_tokenizer.sources.slices import Plan, Slice

ROWS_PER_SLICE = 50_000


@dataclass(frozen=True)
class HubSource:
    """One split of a dataset. `name` is that of the hub, or a folder."""

    name: str
    config: str | None
    split: str
    streaming: bool

    def open(self) -> Any:
        """Open the split with `datasets`. Raises ValueError where that fails."""
        datasets = _import_datasets()
        try:
            return datasets.load_dataset(self.name, self.config, split=self.split, streaming=self.streaming)
        except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
            raise ValueError(f"hub: {self.name} {self.config or ''} {self.split}: {error}") from error


@dataclass(frozen=True)
class HubPart:
    """Rows `start` to `stop` of a downloaded split, or shard `start` of `stop` of a streamed one."""

    hub: HubSource
    columns: Columns
    holds_chats: bool
    rules: RowRules
    start: int
    stop: int

    @property
    def source(self) -> str:
        """Return the name of the dataset."""
        return self.hub.name

    def read(self) -> Iterator[Document | Rejected]:
        """Yield the documents of the part."""
        split = self.hub.open()
        if self.hub.streaming:
            rows, first, name = split.shard(num_shards=self.stop, index=self.start), 0, f"{self.source}#{self.start}"
        else:
            rows, first, name = split.select(range(self.start, self.stop)), self.start, self.source
        for number, row in enumerate(_rows(rows, name), first + 1):
            yield to_document(row, self.columns, f"{name}:{number}", self.rules, holds_chats=self.holds_chats)


def _rows(rows: Any, name: str) -> Iterator[Any]:
    """Yield the rows. Every error of the library, which has many kinds for a damaged file, becomes a ValueError."""
    try:
        yield from rows
    except Exception as error:
        raise ValueError(f"hub: {name}: {error}") from error


def plan_hub(hub: HubSource, rules: RowRules) -> tuple[Plan, HubPart]:
    """Return the plan of a hub dataset and its first part.

    The fingerprint covers the names and revisions of the files on the hub, not their content. Raises ValueError where
    the dataset cannot be opened or no column of it is known.
    """
    split = hub.open()
    try:
        columns, holds_chats = find_columns(itertools.islice(_rows(split, hub.name), SNIFFED_ROWS), rules)
    except ValueError as error:
        raise ValueError(f"hub: {hub.name}: {error}") from error
    if hub.streaming:
        ranges = [(index, split.num_shards) for index in range(split.num_shards)]
    else:
        ranges = [(start, min(start + ROWS_PER_SLICE, len(split))) for start in range(0, len(split), ROWS_PER_SLICE)]
    parts = [HubPart(hub, columns, holds_chats, rules, *bounds) for bounds in ranges]
    slices = [Slice(index, [part]) for index, part in enumerate(parts)]
    return Plan(slices, _fingerprint(hub, columns), holds_chats, columns.preference is not None), parts[0]


def _fingerprint(hub: HubSource, columns: Columns) -> str:
    files = _import_datasets().load_dataset_builder(hub.name, hub.config).config.data_files or {}
    named = {split: [list(found), list(found.origin_metadata)] for split, found in files.items()}
    return hashlib.sha256(repr([hub, columns, sorted(named.items())]).encode()).hexdigest()


def _import_datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ValueError("hub: the datasets library is not installed; pip install '.[hub]'") from error
    return datasets
