"""The directories that a preparation writes: the output directory and next to it the journal, `OUTPUT.partial/`.

Both may be on any filesystem that fsspec knows. Only files that a preparation has written are ever removed.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

import fsspec

from shared_tokenizer.data.shards import MANIFEST, TOKENIZER
from shared_tokenizer.locks import LockedError, locked_file
from shared_tokenizer.manifest import MANIFEST as SEAL
from shared_tokenizer.manifest import (
    manifest_lines,
    named_errors,
    refuse_inside_sealed,
    seal_directory,
    verify_manifest,
)
from shared_tokenizer.preparation.output_files import JOURNAL_FILES, LOCK, OUTPUT_FILES, PLAN, SHARD_FILES
from shared_tokenizer.preparation.prepare_slice import write_atomically

# A journal that holds no more than these was begun and not filled.
_BEGUN = {LOCK, f"{PLAN}.tmp"}
_TRIES = 100


class PreparationOutput:
    """Output directory and journal. Raises ValueError where fsspec cannot open such a path.

    `sha256` holds the digest of every file of the output directory, as hex, by its name. What is in the directories is
    this preparation's own from `begin` on.
    """

    def __init__(self, path: str):
        self._given = path
        try:
            self.filesystem, self.output = fsspec.url_to_fs(path.rstrip("/"))
        except (ImportError, ValueError) as error:
            raise ValueError(f"output_dir: {path}: {error}") from error
        self.journal = f"{self.output}.partial"
        self.plan = f"{self.journal}/{PLAN}"
        self.sha256: dict[str, str] = {}
        self._is_ours = False

    @property
    def is_local(self) -> bool:
        """Return True if the directories are on a filesystem of this machine."""
        return "file" in self.filesystem.protocol

    @property
    def is_begun(self) -> bool:
        """Return True if the journal of an unfinished preparation exists."""
        return self.filesystem.exists(self.plan)

    def read(self, name: str) -> bytes | None:
        """Return the content of a file of the output directory, None where it does not exist."""
        path = f"{self.output}/{name}"
        return self.filesystem.cat_file(path) if self.filesystem.exists(path) else None

    def write(self, name: str, content: bytes) -> None:
        """Write a file of the output directory and keep its sha256."""
        path = f"{self.output}/{name}"
        self.filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
        with named_errors(path):
            self.filesystem.pipe_file(path, content)
        self.sha256[name] = hashlib.sha256(content).hexdigest()

    def local_directories(self) -> list[Path]:
        """Return both directories, which may lie inside an input; empty where they are not on this machine."""
        return [Path(path).resolve() for path in (self.output, self.journal)] if self.is_local else []

    def refuse_foreign_files(self) -> None:
        """Raise ValueError where either path holds files of somebody else, or lies inside a sealed directory."""
        if self.is_local:
            refuse_inside_sealed(Path(self.output))
        if self.filesystem.isfile(self.output):
            raise ValueError(f"{self._given}: is a file, expected a directory to create")
        if self.is_begun or self.filesystem.exists(f"{self.output}/{MANIFEST}"):
            return
        for path in (self.output, self.journal):
            if self.filesystem.exists(path) and not set(self._names(path)) <= _BEGUN:
                raise ValueError(f"{path}: already exists and is not empty; remove it or choose another path")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock out other preparations of the same output. Only a local filesystem is locked.

        Raises ValueError where another process holds the lock.
        """
        lock = self._locked_journal() if self.is_local else contextlib.nullcontext()
        with lock:
            try:
                yield
            finally:
                self.remove_empty_journal()

    @contextlib.contextmanager
    def _locked_journal(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for _ in range(_TRIES):
                self.filesystem.makedirs(self.journal, exist_ok=True)
                # Whoever has finished meanwhile has removed the journal.
                with contextlib.suppress(FileNotFoundError):
                    self._take_lock(stack)
                    break
            else:
                raise ValueError(f"{self._given}: other processes are preparing it; wait for them to end")
            yield

    def _take_lock(self, stack: contextlib.ExitStack) -> None:
        try:
            stack.enter_context(locked_file(Path(self.journal, LOCK)))
        except LockedError:
            raise ValueError(f"{self._given}: another process is preparing it; wait for it to end") from None

    def begin(self, plan: bytes) -> None:
        """Remove what an unfinished preparation has written, write the plan, and create the output directory.

        The plan comes first: it says whose files the others are.
        """
        self._remove_work()
        self.write_plan(plan)
        self._is_ours = True
        self.filesystem.makedirs(self.output, exist_ok=True)

    def write_plan(self, plan: bytes) -> None:
        """Write the plan, completely or not at all."""
        self.filesystem.makedirs(self.journal, exist_ok=True)
        write_atomically(self.filesystem, self.plan, plan)

    def remove(self) -> None:
        """Remove all files of an unfinished preparation; none before it has begun, where they may be another's."""
        if not self._is_ours:
            return
        self._remove_work()
        self._remove_if_empty(self.output)
        self.remove_journal()

    def _remove_work(self) -> None:
        """Remove all files but the plan: first the summaries, which say that the others are complete."""
        for directory, pattern in ((self.journal, JOURNAL_FILES), (self.output, OUTPUT_FILES)):
            if self.filesystem.exists(directory):
                for name in self._names(directory):
                    if pattern.fullmatch(name) and name != PLAN:
                        self.filesystem.rm(f"{directory}/{name}", recursive=name == TOKENIZER)

    def remove_journal(self) -> None:
        """Remove the summaries and then the plan of a preparation."""
        names = self._names(self.journal) if self.filesystem.exists(self.journal) else []
        for name in sorted(names, key=lambda name: name == PLAN):
            if JOURNAL_FILES.fullmatch(name):
                with contextlib.suppress(FileNotFoundError):  # another process found the set finished too
                    self.filesystem.rm_file(f"{self.journal}/{name}")

    def remove_empty_journal(self) -> None:
        """Remove the directory of the journal where it holds nothing but the lock."""
        self._remove_if_empty(self.journal)

    def remove_other_shards(self) -> None:
        """Remove the shards of slices beyond a limit: those that have no digest in `sha256`."""
        for name in self._names(self.output):
            if SHARD_FILES.fullmatch(name) and name not in self.sha256:
                self.filesystem.rm_file(f"{self.output}/{name}")

    def seal(self) -> None:
        """Write the digest of every file; a local directory is flushed to disk first."""
        if self.is_local:
            seal_directory(Path(self.output), self.sha256)
        else:
            self.filesystem.pipe_file(f"{self.output}/{SEAL}", manifest_lines(self.sha256))

    def verify(self) -> None:
        """Raise DamagedError where a local directory does not match its seal. Remote ones are not read again."""
        if self.is_local:
            verify_manifest(Path(self.output))

    @property
    def is_finished(self) -> bool:
        """Return True if the set is sealed and no summary is left: only the plan may still be there."""
        return self.filesystem.exists(f"{self.output}/{SEAL}") and not self.has_finished_slices

    @property
    def has_finished_slices(self) -> bool:
        """Return True if the journal holds a finished slice to resume from."""
        names = self._names(self.journal) if self.filesystem.exists(self.journal) else []
        return any(name.startswith("slice-") and name.endswith(".json") for name in names)

    def _names(self, directory: str) -> list[str]:
        return [path.rstrip("/").rpartition("/")[2] for path in self.filesystem.ls(directory, detail=False)]

    def _remove_if_empty(self, directory: str) -> None:
        # Another process that found the set finished may do the same.
        with contextlib.suppress(FileNotFoundError):
            if self.filesystem.exists(directory) and set(self._names(directory)) <= {LOCK}:
                self.filesystem.rm(directory, recursive=True)
