"""Where a preparation writes: the output directory, and beside it the journal, `OUTPUT.partial/`.

Both may be on any filesystem that fsspec knows. Nothing is removed there but what a preparation has written.
"""

import contextlib
import fcntl
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import fsspec

from shared_tokenizer.data.shards import MANIFEST, TOKENIZER

STATISTICS = "stats.json"
PICTURE = "documents.png"
PLAN, LOCK = "plan.json", "lock"
SHARD_FILES = re.compile(r"(train|val)-\d{5}-\d{2,}(\.ends|\.mask)?\.npy")
OUTPUT_FILES = re.compile(rf"{SHARD_FILES.pattern}|{MANIFEST}|{STATISTICS}|{PICTURE}|{TOKENIZER}")
JOURNAL_FILES = re.compile(rf"{PLAN}|slice-.*\.json(\.tmp)?")


class PreparationOutput:
    """The two directories. Raises ValueError where fsspec cannot open such a path."""

    def __init__(self, path: str):
        self._given = path
        try:
            self.filesystem, self.output = fsspec.url_to_fs(path.rstrip("/"))
        except (ImportError, ValueError) as error:
            raise ValueError(f"output_dir: {path}: {error}") from error
        self.journal = f"{self.output}.partial"
        self.plan = f"{self.journal}/{PLAN}"
        self.sha256: dict[str, str] = {}

    @property
    def is_begun(self) -> bool:
        """Whether there is the journal of a preparation that was not finished."""
        return self.filesystem.exists(self.plan)

    def read(self, name: str) -> bytes | None:
        """A file of the output directory, None where there is none."""
        path = f"{self.output}/{name}"
        return self.filesystem.cat_file(path) if self.filesystem.exists(path) else None

    def write(self, name: str, content: bytes) -> None:
        """Write a file of the output directory and keep its sha256."""
        path = f"{self.output}/{name}"
        self.filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
        self.filesystem.pipe_file(path, content)
        self.sha256[name] = hashlib.sha256(content).hexdigest()

    def refuse_what_is_not_ours(self) -> None:
        """Raise ValueError where something else is in the place of either directory."""
        if self.filesystem.isfile(self.output):
            raise ValueError(f"{self._given}: is a file, expected a directory to create")
        if self.is_begun or self.filesystem.exists(f"{self.output}/{MANIFEST}"):
            return
        for path in (self.output, self.journal):
            if self.filesystem.exists(path) and [name for name in self._names(path) if name != LOCK]:
                raise ValueError(f"{path}: already exists and is not empty; remove it or choose another place")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold both against another preparation, where the filesystem is this machine's."""
        self.filesystem.makedirs(self.journal, exist_ok=True)
        try:
            if "file" in self.filesystem.protocol:
                with _locked_file(Path(self.journal, LOCK), self._given):
                    yield
            else:
                yield
        finally:
            self._remove_if_empty(self.journal)

    def begin(self) -> None:
        """Take away what an unfinished preparation has written, and make room for this one."""
        self.remove()
        self.filesystem.makedirs(self.output, exist_ok=True)

    def remove(self) -> None:
        """Take away what an unfinished preparation has written."""
        for directory, pattern in ((self.journal, JOURNAL_FILES), (self.output, OUTPUT_FILES)):
            if self.filesystem.exists(directory):
                for name in self._names(directory):
                    if pattern.fullmatch(name):
                        self.filesystem.rm(f"{directory}/{name}", recursive=name == TOKENIZER)
        self._remove_if_empty(self.output)

    def remove_journal(self) -> None:
        """The preparation is finished."""
        for name in self._names(self.journal):
            if JOURNAL_FILES.fullmatch(name):
                self.filesystem.rm_file(f"{self.journal}/{name}")

    def remove_other_shards(self) -> None:
        """Take away the shards of slices beyond a limit: those without a sha256 here."""
        for name in self._names(self.output):
            if SHARD_FILES.fullmatch(name) and name not in self.sha256:
                self.filesystem.rm_file(f"{self.output}/{name}")

    @property
    def has_finished_slices(self) -> bool:
        """Whether there is work in the journal to go on from."""
        return bool(self.filesystem.glob(f"{self.journal}/slice-*.json"))

    def _names(self, directory: str) -> list[str]:
        return [path.rstrip("/").rpartition("/")[2] for path in self.filesystem.ls(directory, detail=False)]

    def _remove_if_empty(self, directory: str) -> None:
        if self.filesystem.exists(directory) and not [name for name in self._names(directory) if name != LOCK]:
            self.filesystem.rm(directory, recursive=True)


@contextlib.contextmanager
def _locked_file(path: Path, what: str) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{what}: another process is preparing it; wait for it") from None
        yield
