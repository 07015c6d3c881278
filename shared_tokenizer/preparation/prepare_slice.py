"""One slice of the input -> its token shards. The bytes of the shards depend on the job alone."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import fsspec
import numpy as np

from shared_tokenizer.chat.chat_format import ChatFormat
from shared_tokenizer.chat.messages import encode_chat
from shared_tokenizer.chat.rendered import Spellings, encode_rendered
from shared_tokenizer.data.shards import SPLITS, TOKENIZER, ShardWriter, Split, ids_dtype
from shared_tokenizer.load import load_tokenizer
from shared_tokenizer.manifest import named_errors
from shared_tokenizer.preparation.summary import Summary, count_bad_row, count_no_pair, refuse_lost_rest
from shared_tokenizer.sources.documents import Document, Rejected, cut_document, is_validation
from shared_tokenizer.sources.row_rules import TextFormat
from shared_tokenizer.sources.slices import Slice
from shared_tokenizer.tokenizers.tokenizer import Tokenizer

BATCH_CHARACTERS = 1 << 20
DIGEST_BYTES = 16


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """Settings that the shards depend on, next to input and tokenizer. `PrepareConfig` describes them."""

    val_fraction: float
    document_characters: int
    min_text_length: int
    shard_tokens: int
    max_samples: int | None
    max_tokens: int | None
    dedup: bool


@dataclass(frozen=True)
class SliceJob:
    """Everything that a worker needs to prepare one slice. `output` and `journal` are fsspec paths."""

    slice: Slice
    output: str
    journal: str
    options: PrepareOptions
    tokenizer_fingerprint: str
    chat_format: ChatFormat | None
    """None in a set of texts."""
    max_bad_rows: int
    text_format: TextFormat = "auto"
    duplicates: frozenset[int] = frozenset()
    """Indices, in the slice, of the documents to leave out."""


def prepare_slice(job: SliceJob) -> Summary:
    """Write the shards of one slice, then its summary into the journal. Return the summary.

    A complete slice is not prepared again. Raises ValueError where the slice alone holds more bad rows than allowed.
    """
    filesystem, journal = fsspec.url_to_fs(job.journal)
    done = f"{journal}/{_summary_name(job)}"
    if (found := _finished(filesystem, done, job)) is not None:
        return found
    summary = _SliceWork(job).run()
    write_atomically(filesystem, done, summary.to_json())
    return summary


def write_atomically(filesystem: fsspec.AbstractFileSystem, path: str, content: bytes) -> None:
    """Write to `PATH.tmp` and rename, so that the file is complete or absent."""
    with named_errors(path):
        filesystem.pipe_file(f"{path}.tmp", content)
        filesystem.mv(f"{path}.tmp", path)


def _finished(filesystem: fsspec.AbstractFileSystem, path: str, job: SliceJob) -> Summary | None:
    """Return the summary of a slice whose files all match their digests, None where it has to be prepared."""
    try:
        summary = Summary.from_json(filesystem.cat_file(path))
        output = fsspec.url_to_fs(job.output)[1]
        for name, digest in summary.sha256.items():
            with filesystem.open(f"{output}/{name}") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:  # type: ignore[arg-type]
                    return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return summary


def _summary_name(job: SliceJob) -> str:
    limits = f"{job.options.max_samples}-{job.options.max_tokens}"
    return f"slice-{job.slice.index:05d}-{limits}.json"


class _SliceWork:
    """One slice in preparation: its tokenizer, its open shards and the counts so far."""

    def __init__(self, job: SliceJob):
        self._job, self._options = job, job.options
        filesystem, output = fsspec.url_to_fs(job.output)
        self._tokenizer = _cached_tokenizer(job.output, job.tokenizer_fingerprint)
        self._start = self._tokenizer.start_ids
        self._spellings = Spellings(self._tokenizer.special_tokens)
        self._format = job.chat_format
        self._summary = Summary()
        self._writers = {
            split: ShardWriter(
                filesystem,
                output,
                f"{split}-{job.slice.index:05d}",
                ids_dtype(self._tokenizer.vocab_size),
                job.options.shard_tokens,
                masked=self._format is not None,
            )
            for split in SPLITS
        }

    def run(self) -> Summary:
        for batch in _batches(self._wanted_documents(), self._room):
            if not self._write(batch):
                break
        for split, writer in self._writers.items():
            writer.close()
            self._summary.shards[split] = writer.shards
            self._summary.sha256 |= writer.sha256
        return self._summary

    def _room(self) -> int | None:
        """Return the number of documents that the limit allows yet, None without a limit."""
        most = self._options.max_samples
        return None if most is None else most - self._summary.documents

    def _wanted_documents(self) -> Iterator[tuple[str, Document]]:
        for index, found in enumerate(_kept_documents(self._job, self._summary)):
            if index in self._job.duplicates:
                self._summary.counts["duplicates"] += 1
            else:
                yield found

    def _write(self, batch: Sequence[tuple[str, Document]]) -> bool:
        """Encode and write documents. Return False before the first document that exceeds a limit."""
        options, summary = self._options, self._summary
        for (source, document), encoded in zip(batch, self._encode([found for _, found in batch]), strict=True):
            if not encoded:
                continue
            tokens = [len(ids) for ids, _ in encoded]
            if options.max_samples is not None and summary.documents + len(encoded) > options.max_samples:
                return False
            if options.max_tokens is not None and summary.tokens + sum(tokens) > options.max_tokens:
                return False
            split: Split = "val" if is_validation(document, options.val_fraction) else "train"
            for ids, mask in encoded:
                self._writers[split].add(ids, mask)
            learned = [len(ids) if mask is None else int(mask.sum()) for ids, mask in encoded]
            summary.add_document(source, split, document, tokens, learned)
            summary.add_spellings(document, self._spellings)
            if document.unused:
                summary.unused.setdefault(source, Counter()).update(document.unused)
        return True

    def _encode(self, documents: Sequence[Document]) -> Iterator[list[tuple[np.ndarray, np.ndarray | None]]]:
        """Yield ids int32 `[tokens]` and loss mask bool `[tokens]` of each document; the mask of a text is None.

        A pair yields two of them. A chat that its format cannot express is counted as a bad row, a pair of equal tokens
        as one that compares nothing; they yield none.
        """
        is_rendered = self._job.text_format == "rendered"
        texts = [document.content for document in documents if isinstance(document.content, str) and not is_rendered]
        encoded = iter(self._tokenizer.encode_batch(texts, num_threads=1))
        for document in documents:
            if isinstance(document.content, str):
                yield self._encode_rendered(document) if is_rendered else [(self._framed(next(encoded)), None)]
            else:
                yield self._encode_chats(document)

    def _encode_rendered(self, document: Document) -> list[tuple[np.ndarray, np.ndarray | None]]:
        try:
            return [(np.array(encode_rendered(document.text, self._tokenizer), np.int32), None)]
        except ValueError as error:
            count_bad_row(self._summary, f"{document.name}: {error}", self._job.max_bad_rows)
            return []

    def _framed(self, ids: list[int]) -> np.ndarray:
        """Return begin-of-text, the ids and end-of-text, int32 `[tokens]`."""
        framed = np.empty(len(self._start) + len(ids) + 1, np.int32)
        framed[: len(self._start)] = self._start
        framed[len(self._start) : -1] = np.fromiter(ids, np.int32, len(ids))
        framed[-1] = self._tokenizer.eos_id
        return framed

    def _encode_chats(self, document: Document) -> list[tuple[np.ndarray, np.ndarray | None]]:
        assert self._format is not None
        try:
            chats = [encode_chat(chat, self._tokenizer, self._format) for chat in document.chats]
        except ValueError as error:
            count_bad_row(self._summary, f"{document.name}: {error}", self._job.max_bad_rows)
            return []
        if len(chats) == 2 and chats[0] == chats[1]:
            line = f"{document.name}: found answers that the chat format writes alike, expected different ones"
            count_no_pair(self._summary, "equal_answers", line)
            return []
        return [(np.array(chat.ids, np.int32), np.array(chat.loss_mask, bool)) for chat in chats]


def _kept_documents(job: SliceJob, summary: Summary) -> Iterator[tuple[str, Document]]:
    """Yield source and document of all rows that are long enough; count the others in `summary`."""
    return kept_documents(job.slice, job.options, job.max_bad_rows, summary)


def kept_documents(
    part: Slice, options: PrepareOptions, max_bad_rows: int, summary: Summary
) -> Iterator[tuple[str, Document]]:
    """Yield source and document of all rows of a slice that are long enough; count the others in `summary`.

    Raises ValueError where more rows are bad than allowed, or the rest of a file is lost.
    """
    for source, read in part.read():
        if isinstance(read, Rejected):
            if read.kind is not None:
                count_no_pair(summary, read.kind, f"{read.where}: {read.reason}")
                continue
            refuse_lost_rest(read)
            count_bad_row(summary, f"{read.where}: {read.reason}", max_bad_rows)
            continue
        if not any(read.texts):
            summary.counts["empty"] += 1
            continue
        for document in cut_document(read, options.document_characters):
            if sum(map(len, document.texts)) < options.min_text_length:
                summary.counts["short"] += 1
            else:
                yield source, document


def _batches(
    documents: Iterator[tuple[str, Document]], room: Callable[[], int | None]
) -> Iterator[list[tuple[str, Document]]]:
    """Yield lists of documents that hold about BATCH_CHARACTERS together, of no more than there is room for.

    So nothing that follows the last document is read, and no bad row of it counts.
    """
    while (most := room()) is None or most > 0:
        batch: list[tuple[str, Document]] = []
        characters = 0
        for found in itertools.islice(documents, most):
            batch.append(found)
            characters += sum(map(len, found[1].texts))
            if characters >= BATCH_CHARACTERS:
                break
        if not batch:
            return
        yield batch


def digest_slice(job: SliceJob) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashes of a slice's documents, in order, V16 `[documents]`: 16 bytes each.

    The second array, bool `[documents]`, tells which ones a validation file holds.
    """
    documents = [(found.digest[:DIGEST_BYTES], found.split == "val") for _, found in _kept_documents(job, Summary())]
    digests = np.frombuffer(b"".join(digest for digest, _ in documents), f"V{DIGEST_BYTES}")
    return digests, np.array([is_held_out for _, is_held_out in documents], bool)


def find_duplicates(digests: Sequence[np.ndarray], held_out: Sequence[np.ndarray]) -> list[frozenset[int]]:
    """Return, per slice, the indices of documents that occur before, in the same or an earlier slice.

    What validation files hold counts as the first: a copy of it in a training file is left out. `digests` and
    `held_out` have one array `[documents]` per slice, from `digest_slice`.
    """
    everything = np.concatenate(digests)
    order = np.argsort(~np.concatenate(held_out), kind="stable")
    first = np.unique(everything[order], return_index=True)[1]
    is_copy = np.ones(len(everything), bool)
    is_copy[order[first]] = False
    borders = np.cumsum([len(part) for part in digests])[:-1]
    return [frozenset(np.flatnonzero(part).tolist()) for part in np.split(is_copy, borders)]


@lru_cache(maxsize=1)
def _cached_tokenizer(output: str, fingerprint: str) -> Tokenizer:
    tokenizer = load_output_tokenizer(*fsspec.url_to_fs(output))
    assert tokenizer.fingerprint == fingerprint, f"{output}: its tokenizer was replaced"
    return tokenizer


def load_output_tokenizer(filesystem: fsspec.AbstractFileSystem, output: str) -> Tokenizer:
    """Load the tokenizer of an output directory on any filesystem."""
    with TemporaryDirectory() as local:
        for path in filesystem.ls(f"{output}/{TOKENIZER}", detail=False):
            filesystem.get_file(path, f"{local}/{path.rpartition('/')[2]}")
        return load_tokenizer(Path(local))
