"""A stored teacher: its likeliest tokens at every position of the training examples, computed once, read in every run.

It is a sealed directory of `teacher.json`, which tells what the numbers depend on, and files of records
`[examples, L]`, each of consecutive examples of one shard set. A record holds, of the distribution p of the next token,

    ids        k tokens, the likeliest first
    log_probs  log p of each
    rest       log sum p^(1/T) over all other tokens

T is the temperature of the distillation, on which the rest alone depends.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.common.objectives.distillation import Distillation
from shared_tokenizer.data.data_sets import DataSets
from shared_tokenizer.data.examples import Example, Examples, PackedDocuments
from shared_tokenizer.data.shards import ids_dtype
from shared_tokenizer.manifest import DamagedError, verify_manifest

DESCRIPTION = "teacher.json"
FORMAT_VERSION = 1
_LARGEST_FILE = 2**26


@dataclass(frozen=True)
class Stored:
    """Everything that the records of a stored teacher depend on, and their form. Fingerprints are sha256, as hex."""

    teacher: str
    tokenizer: str
    data: str
    seq_len: int
    packing: tuple[str, ...]
    """best_fit or windows, of each shard set."""
    document_mask: bool
    top_k: int
    temperature: float
    vocab_size: int
    dtype: str
    """Precision of the teacher's activations."""
    examples: tuple[int, ...]
    """Training examples of each shard set."""

    @property
    def record(self) -> np.dtype[Any]:
        """Type of a record."""
        k = self.top_k
        return np.dtype([("ids", ids_dtype(self.vocab_size), (k,)), ("log_probs", "<f4", (k,)), ("rest", "<f4")])

    @property
    def examples_per_file(self) -> int:
        """Examples of every file but the last of a shard set."""
        return max(1, _LARGEST_FILE // (self.record.itemsize * self.seq_len))

    def files(self) -> list[tuple[str, int, range]]:
        """Return the name of every file, the number of its shard set, and its examples."""
        return [
            (f"set-{number:03d}-{first:09d}.npy", number, range(first, min(first + self.examples_per_file, count)))
            for number, count in enumerate(self.examples)
            for first in range(0, count, self.examples_per_file)
        ]


def stored_of(sets: DataSets, seq_len: int, *, document_mask: bool, **settings: Any) -> Stored:
    """Return the description of a teacher stored for these sets; `settings` are the fields that they do not tell."""
    return Stored(
        tokenizer=sets.tokenizer.fingerprint,
        data=sets.fingerprint,
        seq_len=seq_len,
        packing=tuple("best_fit" if isinstance(each, PackedDocuments) else "windows" for each in sets.train),
        document_mask=document_mask,
        examples=tuple(map(len, sets.train)),
        **settings,
    )


def description_bytes(stored: Stored) -> bytes:
    """Return the content of `teacher.json`."""
    return (json.dumps({"format_version": FORMAT_VERSION, **asdict(stored)}, indent=2) + "\n").encode()


def read_description(path: Path) -> Stored:
    """Read `teacher.json`. Raises DamagedError where it is none."""
    try:
        found = json.loads(path.read_bytes())
        if found.pop("format_version") != FORMAT_VERSION:
            raise ValueError(f"found another format_version, expected {FORMAT_VERSION}")
        lists = {name: tuple(value) for name, value in found.items() if isinstance(value, list)}
        return Stored(**{**found, **lists})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{path}: damaged: {error}; store the teacher again") from error


def partial_directory(directory: Path) -> Path:
    """Return the directory of a stored teacher that is not finished."""
    return directory.with_name(f"{directory.name}.partial")


def is_stored_teacher(path: Path) -> bool:
    """Return True if a path is a stored teacher. Raises ValueError where it is one that is not finished."""
    if not path.exists() and partial_directory(path).is_dir():
        raise ValueError(f"teacher: {path}: its storing is not finished; give the command of jaxlm store-teacher again")
    return (path / DESCRIPTION).is_file()


def check_vocabulary(path: Path, stored: Stored, vocab_size: int) -> None:
    """Raise ValueError where the student has another vocabulary than the teacher."""
    if stored.vocab_size != vocab_size:
        raise ValueError(
            f"teacher: {path}: found a vocabulary of {stored.vocab_size} tokens, expected the model's {vocab_size}; "
            f"a fresh model takes --model.vocab_size {stored.vocab_size}"
        )


def taught_sets(
    path: Path, sets: DataSets, seq_len: int, settings: Distillation, *, document_mask: bool, verify: bool
) -> DataSets:
    """Return the sets, whose training examples have `teacher_ids`, `teacher_log_probs` and `teacher_rest` too.

    `verify` first compares every file with its sha256. Raises ValueError where the teacher was stored for other
    examples or another temperature, or with fewer tokens than the settings ask for.
    """
    if verify:
        verify_manifest(path)
    stored = read_description(path / DESCRIPTION)
    _check_settings(path, stored, settings)
    expected = stored_of(
        sets,
        seq_len,
        document_mask=document_mask,
        **{name: getattr(stored, name) for name in ("teacher", "top_k", "temperature", "vocab_size", "dtype")},
    )
    for field in fields(Stored):
        found, wanted = getattr(stored, field.name), getattr(expected, field.name)
        if found != wanted:
            raise ValueError(
                f"teacher: {path}: was stored with {field.name} {_short(found)}, found {_short(wanted)} in this run; "
                "give the same shards and settings, or store the teacher again with jaxlm store-teacher"
            )
    arrays: list[list[np.ndarray]] = [[] for _ in stored.examples]
    for name, number, examples in stored.files():
        arrays[number].append(_open_records(path / name, stored, len(examples)))
    k = settings.top_k or stored.top_k
    train = tuple(TaughtExamples(each, stored, records, k) for each, records in zip(sets.train, arrays, strict=True))
    return replace(sets, train=train)


def _check_settings(path: Path, stored: Stored, settings: Distillation) -> None:
    if settings.relations_weight:
        raise ValueError(
            f"teacher_relations_weight: found {settings.relations_weight:g} with {path}, which holds the likeliest "
            "tokens of a teacher alone; name the teacher itself"
        )
    if settings.top_k > stored.top_k:
        raise ValueError(
            f"teacher_top_k: found {settings.top_k}, expected at most {stored.top_k}, the tokens that {path} holds; "
            "0 takes them all"
        )
    if not math.isclose(settings.temperature, stored.temperature):
        raise ValueError(
            f"teacher_temperature: found {settings.temperature:g}, expected {stored.temperature:g}, with which {path} "
            "was stored"
        )


def _short(value: Any) -> str:
    return f"{value[:12]}..." if isinstance(value, str) and len(value) > 20 else str(value)


def _open_records(path: Path, stored: Stored, count: int) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DamagedError(f"{path}: damaged: {error}; store the teacher again") from error
    if array.dtype != stored.record or array.shape != (count, stored.seq_len):
        raise DamagedError(
            f"{path}: found {list(array.shape)} records, expected {[count, stored.seq_len]} of {stored.top_k} tokens; "
            "store the teacher again"
        )
    return array


class TaughtExamples:
    """Examples with the records of a stored teacher, of which the first `top_k` tokens are told from the rest."""

    def __init__(self, examples: Examples, stored: Stored, records: list[np.ndarray], top_k: int):
        self._examples, self._stored, self._records, self._top_k = examples, stored, records, top_k
        self.report = getattr(examples, "report", None)

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        index = range(len(self))[index]
        per_file = self._stored.examples_per_file
        records = self._records[index // per_file][index % per_file]
        return Example(**self._examples[index], **_first_tokens(records, self._top_k, self._stored.temperature))


def _first_tokens(records: np.ndarray, k: int, temperature: float) -> Mapping[str, Any]:
    """Return the first k tokens of records `[L]`; the others go to the rest."""
    others = np.concatenate([records["log_probs"][:, k:] / np.float32(temperature), records["rest"][:, None]], axis=1)
    return {
        "teacher_ids": records["ids"][:, :k].astype(np.int32),
        "teacher_log_probs": np.ascontiguousarray(records["log_probs"][:, :k]),
        "teacher_rest": np.logaddexp.reduce(others, axis=1),
    }
