"""Settings of a preparation -> the plan of its input: slices, their fingerprint, and their first rows for the user."""

import itertools
from collections.abc import Collection, Iterator, Sequence
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
    found = find_files(config.input, config.rules, config.file_rules, leave_out)
    for line in found.lines:
        reporter.log(line)
    _show_files(found.files, reporter)
    return plan_files(found.files)


def _show_files(files: Sequence[SourceFile], reporter: Reporter) -> None:
    """Log the first rows of one file of each kind: source, format and columns."""
    kinds: dict[tuple[str, str, Columns], list[SourceFile]] = {}
    for file in files:
        if not file.problem:
            kinds.setdefault((file.source, file.format, file.columns), []).append(file)
    for same in kinds.values():
        more = f" (and {len(same) - 1:,} more such files)" if len(same) > 1 else ""
        first, columns = same[0], same[0].columns
        _show_columns(f"{first.path}{more}", "text" if first.format == "text" else columns, read_file(first), reporter)
    chats = sum(file.holds_chats for file in files)
    if 0 < chats < len(files):
        reporter.log(f"a mixture: {chats:,} files hold chats, {len(files) - chats:,} hold texts")


def _show_columns(name: str, columns: Columns | str, rows: Iterator[Document | Rejected], reporter: Reporter) -> None:
    """Log the columns, whether they hold chats, the columns that are not used, and the first rows."""
    documents = list(itertools.islice((row for row in rows if isinstance(row, Document)), SAMPLE_ROWS))
    kinds = sorted({document.kind for document in documents})
    unused = ", ".join(dict.fromkeys(column for document in documents for column in document.unused))
    meaning = f" as {' and '.join(kinds)}" if kinds != ["texts"] and kinds else ""
    reporter.log(f"{name}: reading {columns}{meaning}{f'; columns not used: {unused}' if unused else ''}")
    for document in documents:
        text = " | ".join(" ".join(part.split()) for part in document.texts)
        reporter.log(f"  {text[:SAMPLE_CHARACTERS]}{'...' if len(text) > SAMPLE_CHARACTERS else ''}")
