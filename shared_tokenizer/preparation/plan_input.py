"""Settings of a preparation -> the plan of its input: slices, their fingerprint, and their first rows for the user."""

import itertools
from collections.abc import Collection, Iterator
from pathlib import Path

from shared_tokenizer.preparation.prepare_config import PrepareConfig
from shared_tokenizer.preparation.reporter import Reporter
from shared_tokenizer.sources.columns import Columns
from shared_tokenizer.sources.documents import Document, Rejected, read_file
from shared_tokenizer.sources.files import SourceFile, find_files
from shared_tokenizer.sources.hub import HubSource, plan_hub
from shared_tokenizer.sources.slices import Plan, plan_files

SAMPLE_ROWS = 3
SAMPLE_CHARACTERS = 100


def plan_input(config: PrepareConfig, leave_out: Collection[Path], reporter: Reporter) -> Plan:
    """Plan the input and log its columns and first rows. Files below the folders of `leave_out` are not read.

    Raises ValueError where a source is missing or holds nothing that can be read.
    """
    if config.hub:
        hub = HubSource(config.hub, config.hub_config, config.hub_split, config.hub_streaming)
        plan, example = plan_hub(hub, config.rules)
        _show_columns(hub.name, example.columns, example.read(), reporter)
        return plan
    files = [file for source in config.input for file in find_files(source, config.rules, leave_out)]
    _show_files(files, reporter)
    return plan_files(files)


def _show_files(files: list[SourceFile], reporter: Reporter) -> None:
    """Log the first rows of one file per source and set of columns."""
    shown: set[tuple[str, Columns]] = set()
    for file in files:
        if file.format != "text" and not file.problem and (file.source, file.columns) not in shown:
            shown.add((file.source, file.columns))
            _show_columns(str(file.path), file.columns, read_file(file), reporter)


def _show_columns(name: str, columns: Columns, rows: Iterator[Document | Rejected], reporter: Reporter) -> None:
    reporter.log(f"{name}: reading {columns}")
    documents = (row for row in rows if isinstance(row, Document))
    for document in itertools.islice(documents, SAMPLE_ROWS):
        text = " | ".join(" ".join(part.split()) for part in document.texts)
        reporter.log(f"  {text[:SAMPLE_CHARACTERS]}{'...' if len(text) > SAMPLE_CHARACTERS else ''}")
