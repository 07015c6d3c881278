"""Any text -> a set of token shards, by however many workers; an interrupted preparation goes on where it was.

While it is being made, `OUTPUT.partial/` beside it holds the plan and a summary of every finished slice.
"""

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from shared_tokenizer.chat.formats import CHATML, ChatFormat, ChatFormatChoice, named_chat_format
from shared_tokenizer.chat.messages import Message, encode_chat
from shared_tokenizer.chat.template import read_chat_format, write_chat_template, write_stop_ids
from shared_tokenizer.data.shards import FORMAT_VERSION, MANIFEST, SPLITS, TOKENIZER, ids_dtype, parse_manifest
from shared_tokenizer.load import load_tokenizer
from shared_tokenizer.preparation.executors import Executor, run_jobs
from shared_tokenizer.preparation.output import PICTURE, STATISTICS, PreparationOutput
from shared_tokenizer.preparation.prepare_slice import (
    PrepareOptions,
    SliceJob,
    Summary,
    digest_slice,
    find_duplicates,
    load_beside,
    prepare_slice,
    refuse_too_many_bad_rows,
    write_atomically,
)
from shared_tokenizer.preparation.report import draw_lengths, statistics
from shared_tokenizer.sources.columns import Columns
from shared_tokenizer.sources.documents import Document, Rejected, find_files, read_file
from shared_tokenizer.sources.hub import HubSource, plan_hub
from shared_tokenizer.sources.slices import plan_files
from shared_tokenizer.tokenizers.tokenizer import Tokenizer
from shared_tokenizer.tokenizers.train import TRAIN_SIZE, ModelType, sample_texts, train_tokenizer

# The tokenizer's sample is taken from as many slices as hold this many times its size.
SAMPLED_SLICES = 4
SAMPLE_ROWS = 3
SAMPLE_CHARACTERS = 100


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """What to prepare. Raises ValueError on settings that do not fit each other."""

    output_dir: str
    """Directory of token shards to create, on this machine or any fsspec path; one that holds the same already is kept
    as it is."""
    input: list[str] = field(default_factory=list)
    """Files, folders of them, or stdlib, the Python standard library's own source."""
    tokenizer: str | None = None
    """Tokenizer to use: a directory, or a file in it."""
    vocab_size: int | None = None
    """Train a tokenizer of this many tokens on the input."""
    model_type: ModelType = "bpe"
    """Kind of tokenizer to train."""
    special_tokens: list[str] = field(default_factory=list)
    """Special tokens of the tokenizer to train, beside the usual ones."""
    train_size: int = TRAIN_SIZE
    """Bytes of text to train a tokenizer on, chosen by hash."""
    text_column: str | None = None
    """Column that holds the text or the messages, where it is not found by itself."""
    chat_format: ChatFormatChoice = "auto"
    """How chats are written; auto is the tokenizer's own, or else chatml."""
    hub: str | None = None
    """Dataset of the Hugging Face hub (or a folder in its layout) to read in place of input."""
    hub_config: str | None = None
    """Configuration of the hub dataset, for example sample-10BT."""
    hub_split: str = "train"
    """Split of the hub dataset."""
    hub_streaming: bool = True
    """Read the hub dataset as it comes, without keeping a copy on disk."""
    val_fraction: float = 0.05
    """Share of the documents held out for validation, chosen by their hash."""
    document_characters: int = 0
    """Cut texts at line ends into documents of about this many characters, so that a part of one long file can be
    held out; 0 leaves each text whole."""
    min_text_length: int = 1
    """Leave out documents of fewer characters."""
    dedup: bool = False
    """Leave out documents that came before, letter by letter."""
    max_samples: int | None = None
    """Stop after this many documents."""
    max_tokens: int | None = None
    """Stop before the document that would make it more tokens than this."""
    max_bad_rows: int = 0
    """Rows that cannot be read and are skipped; one more stops the command."""
    shard_tokens: int = 50_000_000
    """Tokens after which a shard file ends, at the end of a document."""
    num_workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Processes on this machine."""
    executor: Executor = "local"
    """Who does the work: processes on this machine, or a running Ray cluster that sees the same files."""

    def __post_init__(self) -> None:
        if (self.tokenizer is None) == (self.vocab_size is None):
            raise ValueError("tokenizer, vocab_size: expected one of the two, a tokenizer to use or a size to train")
        if bool(self.input) == bool(self.hub):
            raise ValueError("input, hub: expected one of the two, files to read or a dataset of the hub")
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"val_fraction: found {self.val_fraction}, expected more than 0 and less than 1")
        for name in ("train_size", "min_text_length", "shard_tokens", "num_workers", "max_samples", "max_tokens"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}: found {value}, expected at least 1")
        for name in ("document_characters", "max_bad_rows"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected 0 or more")
        if self.chat_format != "auto":
            named_chat_format(self.chat_format)
        if self.tokenizer is not None and self.special_tokens:
            raise ValueError("special_tokens: has no effect on a tokenizer that is given; train one with vocab_size")

    @property
    def options(self) -> PrepareOptions:
        """The part that every slice needs."""
        return PrepareOptions(**{name: getattr(self, name) for name in PrepareOptions.__dataclass_fields__})


class Reporter(Protocol):
    """Who is told how it goes."""

    def say(self, line: str) -> None:
        """Something to read."""
        ...

    def slices(self, done: int, total: int, so_far: Summary) -> None:
        """Called before the first and after every slice."""
        ...


Seal = Callable[[dict[str, str]], None]


def prepare(config: PrepareConfig, seal: Seal, reporter: Reporter) -> dict[str, Any]:
    """Make the shard set, or go on with one that was interrupted, or keep a finished one; returns its manifest.

    `seal` gets the sha256 of every file when all are written. Raises ValueError on input that cannot be used
    and where `output_dir` holds something else.
    """
    return _Preparation(config, seal, reporter).run()


class _Preparation:
    def __init__(self, config: PrepareConfig, seal: Seal, reporter: Reporter):
        self._config, self._seal, self._reporter = config, seal, reporter
        self._output = PreparationOutput(config.output_dir)

    def run(self) -> dict[str, Any]:
        self._output.refuse_what_is_not_ours()
        self._plan_input()
        given = None if self._config.tokenizer is None else load_tokenizer(Path(self._config.tokenizer))
        if given is not None and given.missing_bytes:
            lost = " ".join(f"{byte:02X}" for byte in sorted(given.missing_bytes))
            self._reporter.say(f"the tokenizer has no token for bytes {lost}: characters that need one are left out")
        identity = self._identity(given)
        if (manifest := self._finished(identity)) is not None:
            return manifest
        with self._output.locked():
            if (manifest := self._finished(identity)) is not None:  # by another process meanwhile
                return manifest
            try:
                return self._make(given, identity)
            except ValueError:
                if not self._output.has_finished_slices:
                    self._output.remove()
                raise

    def _finished(self, identity: dict[str, Any]) -> dict[str, Any] | None:
        """The manifest of a finished set, if there is one; raises ValueError where it is of another preparation."""
        content = self._output.read(MANIFEST)
        if content is None:
            return None
        manifest = parse_manifest(content, self._config.output_dir)
        self._refuse_another(manifest["options"], identity)
        return None if self._output.is_begun else manifest

    def _plan_input(self) -> None:
        """Find out what there is to read, and show it."""
        config = self._config
        if config.hub:
            hub = HubSource(config.hub, config.hub_config, config.hub_split, config.hub_streaming)
            self._plan, example = plan_hub(hub, config.text_column)
            self._holds_chats = example.holds_chats
            self._show_columns(hub.name, example.columns, example.read())
            return
        mine = [Path(path).resolve() for path in (self._output.output, self._output.journal)]  # may lie in an input
        files = [file for source in config.input for file in find_files(source, config.text_column, mine)]
        self._holds_chats = any(file.holds_chats for file in files)
        shown: set[tuple[str, Columns]] = set()
        for file in files:
            if file.format != "text" and not file.problem and (file.source, file.columns) not in shown:
                shown.add((file.source, file.columns))
                self._show_columns(str(file.path), file.columns, read_file(file))
        self._plan = plan_files(files)

    def _show_columns(self, where: str, columns: Columns, documents: Iterator[Document | Rejected]) -> None:
        self._reporter.say(f"{where}: reading {columns}")
        samples = (found for found in documents if isinstance(found, Document))
        for document in itertools.islice(samples, SAMPLE_ROWS):
            text = " | ".join(" ".join(part.split()) for part in document.texts)
            self._reporter.say(f"  {text[:SAMPLE_CHARACTERS]}{'...' if len(text) > SAMPLE_CHARACTERS else ''}")

    def _identity(self, given: Tokenizer | None) -> dict[str, Any]:
        """What the result depends on."""
        config = self._config
        trained = {name: getattr(config, name) for name in ("vocab_size", "model_type", "special_tokens", "train_size")}
        return {
            "input": [config.hub] if config.hub else config.input,
            "input_sha256": self._plan.fingerprint,
            "tokenizer": None if given is None else given.fingerprint,
            **(trained if given is None else {}),
            "chat_format": config.chat_format,
            **asdict(config.options),
        }

    def _refuse_another(self, before: dict[str, Any], identity: dict[str, Any]) -> None:
        for name, value in identity.items():
            if name != "input" and before.get(name) != value:
                raise ValueError(
                    f"{self._config.output_dir}: holds another corpus: {name} was {before.get(name)!r} and is now "
                    f"{value!r}; remove it{' and its .partial' if self._output.is_begun else ''} or choose another "
                    "output_dir"
                )

    def _make(self, given: Tokenizer | None, identity: dict[str, Any]) -> dict[str, Any]:
        tokenizer, chat_format = self._start(given, identity)
        summary = self._run_slices(chat_format, tokenizer.fingerprint)
        self._refuse_empty(summary)
        self._output.sha256 |= summary.sha256
        manifest = {
            "format_version": FORMAT_VERSION,
            "dtype": ids_dtype(tokenizer.vocab_size),
            "vocab_size": tokenizer.vocab_size,
            "tokenizer_fingerprint": tokenizer.fingerprint,
            "masked": chat_format is not None,
            "chat_format": None if chat_format is None else chat_format.name,
            "options": identity,
            "splits": {split: {**summary.splits[split], "shards": summary.shards[split]} for split in SPLITS},
        }
        self._output.write(STATISTICS, _to_json(statistics(summary)))
        self._output.write(PICTURE, draw_lengths(summary))
        self._output.write(MANIFEST, _to_json(manifest))
        self._output.remove_other_shards()
        self._seal(self._output.sha256)
        self._output.remove_journal()
        return manifest

    def _refuse_empty(self, summary: Summary) -> None:
        if all(summary.splits.get(split) for split in SPLITS):
            return
        self._output.remove()
        if not summary.documents:
            left_out = ", ".join(f"{count} {reason}" for reason, count in summary.counts.items() if count)
            first = f"; the first bad row is {summary.bad_rows[0]}" if summary.bad_rows else ""
            limit = " within max_samples and max_tokens" if self._config.max_samples or self._config.max_tokens else ""
            raise ValueError(f"{self._where}: found no text{limit}; left out: {left_out or 'nothing'}{first}")
        split = next(split for split in SPLITS if not summary.splits.get(split))
        raise ValueError(
            f"{split} split: found none of the {summary.documents} documents in it; give more of them, another "
            "val_fraction, or cut long files with --document_characters 10000"
        )

    @property
    def _where(self) -> str:
        return self._config.hub or " ".join(self._config.input)

    def _start(self, given: Tokenizer | None, identity: dict[str, Any]) -> tuple[Tokenizer, ChatFormat | None]:
        """The tokenizer and the chat format: those of the preparation that was begun, where there is one."""
        begun = self._read_plan() if self._output.is_begun else None
        if begun is None:
            tokenizer = given or self._train_tokenizer()
            chat_format = self._chat_format(tokenizer)
            self._output.begin()
        else:
            self._refuse_another(begun["identity"], identity)
            tokenizer = given or self._tokenizer_beside(begun["tokenizer_fingerprint"])
            chat_format = self._chat_format(tokenizer)
            self._reporter.say(f"{self._config.output_dir}: going on with a preparation that was interrupted")
        self._write_tokenizer(tokenizer, chat_format)
        content = {"identity": identity, "tokenizer_fingerprint": tokenizer.fingerprint}
        write_atomically(self._output.filesystem, self._output.plan, _to_json(content))
        return tokenizer, chat_format

    def _read_plan(self) -> dict[str, Any]:
        try:
            begun = json.loads(self._output.filesystem.cat_file(self._output.plan))
            return {name: begun[name] for name in ("identity", "tokenizer_fingerprint")}
        except (ValueError, TypeError, KeyError):
            raise self._damaged(self._output.plan) from None

    def _tokenizer_beside(self, fingerprint: str) -> Tokenizer:
        """The tokenizer that was trained for the slices that are finished."""
        with contextlib.suppress(OSError, ValueError):
            tokenizer = load_beside(self._output.filesystem, self._output.output)
            if tokenizer.fingerprint == fingerprint:
                return tokenizer
        raise self._damaged(f"{self._output.output}/{TOKENIZER}")

    def _damaged(self, what: str) -> ValueError:
        here = f"{self._output.output} and {self._output.journal}"
        return ValueError(f"{what}: damaged, so the preparation cannot go on; remove {here} and begin anew")

    def _train_tokenizer(self) -> Tokenizer:
        config = self._config
        assert config.vocab_size is not None
        self._reporter.say(f"training a tokenizer of {config.vocab_size} tokens")
        sample = sample_texts(self._texts_to_sample(), config.train_size)
        if not sample:
            raise ValueError(f"{self._where}: found no text to train a tokenizer on")
        return train_tokenizer(
            sample, config.vocab_size, model_type=config.model_type, special_tokens=config.special_tokens
        )

    def _texts_to_sample(self) -> Iterator[str]:
        """The texts of enough slices, drawn evenly from the whole input."""
        slices, size = list(self._plan.slices), 0
        Random(0).shuffle(slices)
        for part in slices:
            for _, document in part.read():
                if isinstance(document, Document):
                    size += document.size_bytes
                    yield from document.texts
            if size >= SAMPLED_SLICES * self._config.train_size:
                return

    def _chat_format(self, tokenizer: Tokenizer) -> ChatFormat | None:
        """How the chats of this input are written; None where it holds none. Raises ValueError where they cannot be."""
        if not self._holds_chats:
            return None
        if self._config.chat_format != "auto":
            found = named_chat_format(self._config.chat_format)
        else:
            own = Path(self._config.tokenizer) if self._config.tokenizer else None
            found = (read_chat_format(own if own.is_dir() else own.parent) if own else None) or CHATML
        encode_chat((Message("user", "a"), Message("assistant", "b")), tokenizer, found)
        return found

    def _write_tokenizer(self, tokenizer: Tokenizer, chat_format: ChatFormat | None) -> None:
        with TemporaryDirectory() as temporary:
            directory = Path(temporary)
            tokenizer.save(directory)
            if chat_format is not None:
                write_chat_template(directory, chat_format, tokenizer)
                write_stop_ids(directory, chat_format, tokenizer)
            for path in sorted(directory.iterdir()):
                self._output.write(f"{TOKENIZER}/{path.name}", path.read_bytes())

    def _run_slices(self, chat_format: ChatFormat | None, fingerprint: str) -> Summary:
        """All slices, up to the limits; the counts of everything."""
        config, total, filesystem = self._config, Summary(), self._output.filesystem
        jobs = [
            SliceJob(
                slice=part,
                output=filesystem.unstrip_protocol(self._output.output),
                journal=filesystem.unstrip_protocol(self._output.journal),
                options=config.options,
                tokenizer_fingerprint=fingerprint,
                chat_format=None if chat_format is None else chat_format.name,
                max_bad_rows=config.max_bad_rows,
            )
            for part in self._plan.slices
        ]
        if config.dedup:
            duplicates = find_duplicates(list(run_jobs(digest_slice, jobs, config.executor, config.num_workers)))
            jobs = [replace(job, duplicates=places) for job, places in zip(jobs, duplicates, strict=True)]
        self._reporter.slices(0, len(jobs), total)
        results = run_jobs(prepare_slice, jobs, config.executor, config.num_workers)
        for done, (job, found) in enumerate(zip(jobs, results, strict=True), 1):
            if self._reaches_limit(total, found):
                total.merge(prepare_slice(replace(job, options=self._what_is_left(total))))
                break
            total.merge(found)
            refuse_too_many_bad_rows(total, config.max_bad_rows)
            self._reporter.slices(done, len(jobs), total)
        return total

    def _reaches_limit(self, total: Summary, found: Summary) -> bool:
        documents, tokens = self._config.max_samples, self._config.max_tokens
        return (documents is not None and total.documents + found.documents >= documents) or (
            tokens is not None and total.tokens + found.tokens >= tokens
        )

    def _what_is_left(self, total: Summary) -> PrepareOptions:
        documents, tokens = self._config.max_samples, self._config.max_tokens
        return replace(
            self._config.options,
            max_samples=None if documents is None else documents - total.documents,
            max_tokens=None if tokens is None else tokens - total.tokens,
        )


def _to_json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
