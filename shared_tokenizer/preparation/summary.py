"""The counts of a slice or of a whole preparation, kept in the journal, and the limits on rows that cannot be read."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from shared_tokenizer.chat.rendered import Spellings, find_plain_form
from shared_tokenizer.data.shards import Split
from shared_tokenizer.sources.documents import Document, Rejected
from shared_tokenizer.sources.preferences import NoPair

BAD_ROWS_SHOWN = 10


@dataclass(kw_only=True)
class Summary:
    """Counts, shards and digests of one slice, or of several: the content of the manifest and the statistics."""

    counts: Counter[str] = field(default_factory=Counter)
    """Rows and documents that were left out, by reason, and conversations that were kept."""
    bad_rows: list[str] = field(default_factory=list)
    """Messages of the first bad rows."""
    no_pairs: list[str] = field(default_factory=list)
    """Messages of the first rows whose answers cannot be compared."""
    sources: dict[str, Counter[str]] = field(default_factory=dict)
    """Documents, chats among them, UTF-8 bytes, tokens, and tokens in the loss mask (`learned`) of each source."""
    splits: dict[str, Counter[str]] = field(default_factory=dict)
    """The same counts of each split, without chats."""
    lengths: Counter[str] = field(default_factory=Counter)
    """Documents by the bit length of their number of tokens: the bins of the histogram."""
    shards: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Manifest entries of the shards of each split."""
    sha256: dict[str, str] = field(default_factory=dict)
    """Digest of each file, as hex, by its name."""
    spelled: dict[str, Counter[str]] = field(default_factory=dict)
    """Documents that spell out each special token or marker, or are a chat of a form of letters; of `texts` and
    `chats`. The documents with any special token are under the empty name."""
    unused: dict[str, Counter[str]] = field(default_factory=dict)
    """Rows with each column that was not read, by source."""

    def add_document(
        self, source: str, split: Split, document: Document, tokens: Sequence[int], learned: Sequence[int]
    ) -> None:
        """Count a document that is kept, with its tokens and the tokens of them in the loss mask.

        A pair counts as two, and has two numbers each.
        """
        for counts in (self.sources.setdefault(source, Counter()), self.splits.setdefault(split, Counter())):
            counts["documents"] += len(tokens)
            counts["bytes"] += document.size_bytes
            counts["tokens"] += sum(tokens)
            counts["learned"] += sum(learned)
        if document.chats:
            self.sources[source]["chats"] += len(document.chats)
        self.counts["conversations"] += len(document.chats)
        self.counts["pairs"] += document.kind == "pairs"
        self.lengths.update(str(number.bit_length()) for number in tokens)

    def add_spellings(self, document: Document, spellings: Spellings) -> None:
        """Count the markers of chats that a document spells out."""
        for texts in [[message.content for message in chat] for chat in document.chats] or [document.texts]:
            found = set[str]().union(*map(spellings.find, texts))
            if found:
                found.add("")
            elif not document.chats and (form := find_plain_form(document.text)):
                found.add(form)
            if found:
                self.spelled.setdefault("chats" if document.chats else "texts", Counter()).update(found)

    def merge(self, other: "Summary") -> None:
        """Add the summary of the next slice."""
        self.counts.update(other.counts)
        self.lengths.update(other.lengths)
        self.bad_rows = (self.bad_rows + other.bad_rows)[:BAD_ROWS_SHOWN]
        self.no_pairs = (self.no_pairs + other.no_pairs)[:BAD_ROWS_SHOWN]
        for mine, theirs in (
            (self.sources, other.sources),
            (self.splits, other.splits),
            (self.spelled, other.spelled),
            (self.unused, other.unused),
        ):
            for name, counts in theirs.items():
                mine.setdefault(name, Counter()).update(counts)
        for split, shards in other.shards.items():
            self.shards.setdefault(split, []).extend(shards)
        self.sha256 |= other.sha256

    @property
    def documents(self) -> int:
        """Return the number of documents kept."""
        return sum(split["documents"] for split in self.splits.values())

    @property
    def tokens(self) -> int:
        """Return the number of tokens written."""
        return sum(split["tokens"] for split in self.splits.values())

    def to_json(self) -> bytes:
        """Return the content of a file of the journal: the summary, and its own digest."""
        content = json.dumps(vars(self))
        return json.dumps({"summary": content, "digest": _digest_of(content)}).encode()

    @classmethod
    def from_json(cls, content: str | bytes) -> "Summary":
        """Return the summary of a file of the journal. Raises ValueError, TypeError or KeyError on a damaged one."""
        whole = json.loads(content)
        if whole["digest"] != _digest_of(whole["summary"]):
            raise ValueError("found another digest of the summary")
        found = json.loads(whole["summary"])
        for name in ("counts", "lengths"):
            found[name] = Counter(found[name])
        for name in ("sources", "splits", "spelled", "unused"):
            found[name] = {key: Counter(value) for key, value in found.get(name, {}).items()}
        return cls(**found)


def _digest_of(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


def count_bad_row(summary: Summary, line: str, max_bad_rows: int) -> None:
    """Count a row that cannot be read. Raises ValueError where there are more than allowed."""
    summary.counts["bad_rows"] += 1
    summary.bad_rows = [*summary.bad_rows, line][:BAD_ROWS_SHOWN]
    refuse_too_many_bad_rows(summary, max_bad_rows)


def count_no_pair(summary: Summary, kind: NoPair, line: str) -> None:
    """Count a row whose answers cannot be compared, which is left out."""
    summary.counts[kind] += 1
    summary.no_pairs = [*summary.no_pairs, line][:BAD_ROWS_SHOWN]


def refuse_lost_rest(row: Rejected) -> None:
    """Raise ValueError where more than one row is lost, which no limit on bad rows allows."""
    if row.loses_rest:
        raise ValueError(
            f"{row.where}: {row.reason} (this concerns all rows from there on, so max_bad_rows does not apply); "
            "correct the file"
        )


def refuse_too_many_bad_rows(summary: Summary, max_bad_rows: int) -> None:
    """Raise ValueError where more rows are bad than the user allows."""
    if (count := summary.counts["bad_rows"]) > max_bad_rows:
        raise ValueError(
            f"{summary.bad_rows[0]} (bad rows: {count}, max_bad_rows: {max_bad_rows}); correct the row, or raise "
            "max_bad_rows to skip such rows"
        )
