"""Storing a teacher (`stored_teacher`): one file after another, so that a killed command goes on where it was."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from jaxlm.common.objectives.stored_teacher import (
    DESCRIPTION,
    Stored,
    description_bytes,
    partial_directory,
    read_description,
)
from shared_tokenizer.data.data_sets import DataSets
from shared_tokenizer.data.examples import Example, Examples
from shared_tokenizer.locks import LockedError, locked_file
from shared_tokenizer.manifest import refuse_inside_sealed, replaced_file, seal_directory, write_file

# Batch [B, L] -> ids and log-probabilities [B, L, k] of its likeliest tokens, and the rest [B, L].
Likeliest = Callable[[Example], tuple[np.ndarray, np.ndarray, np.ndarray]]
Track = Callable[[list[tuple[str, int, range]]], Iterable[tuple[str, int, range]]]
_LOCK = "lock"


def store_teacher(
    directory: Path,
    sets: DataSets,
    stored: Stored,
    likeliest: Likeliest,
    batch_size: int,
    log: Callable[[str], None],
    track: Track = iter,
) -> None:
    """Write the records of all training examples to `directory`, which appears when it is complete.

    Until then they are in `DIRECTORY.partial`, and the same call goes on from there. `track` shows the progress over
    the files. Raises ValueError where either directory holds anything else, or where a number is not finite.
    """
    if (directory / DESCRIPTION).is_file():
        _check_same(directory, stored)
        log(f"{directory}: is stored already")
        return
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ValueError(f"{directory}: already exists and is not empty; remove it or choose another path")
    refuse_inside_sealed(directory)
    partial = partial_directory(directory)
    partial.mkdir(parents=True, exist_ok=True)
    try:
        with locked_file(partial / _LOCK):
            _write_files(partial, sets, stored, likeliest, batch_size, log, track)
            (partial / _LOCK).unlink()
            seal_directory(partial)
            os.replace(partial, directory)
    except LockedError:
        raise ValueError(f"{directory}: another process is storing it; wait for it to end") from None


def _check_same(directory: Path, stored: Stored) -> None:
    if (found := read_description(directory / DESCRIPTION)) != stored:
        names = [name for name, value in vars(stored).items() if getattr(found, name) != value]
        raise ValueError(
            f"{directory}: was stored with other settings ({', '.join(names)}); remove it or choose another path"
        )


def _write_files(
    partial: Path,
    sets: DataSets,
    stored: Stored,
    likeliest: Likeliest,
    batch_size: int,
    log: Callable[[str], None],
    track: Track,
) -> None:
    for begun in partial.glob(".*"):  # of a write that was killed
        begun.unlink()
    if (partial / DESCRIPTION).is_file():
        _check_same(partial, stored)
    elif names := sorted(path.name for path in partial.iterdir() if path.name != _LOCK):
        raise ValueError(f"{partial}: found {names[0]}, expected a teacher that is not finished; remove the directory")
    else:
        write_file(partial / DESCRIPTION, description_bytes(stored))
    files = stored.files()
    left = [file for file in files if not (partial / file[0]).is_file()]
    if len(left) < len(files):
        log(f"{partial}: {len(files) - len(left):,} of {len(files):,} files are done already")
    for name, number, examples in track(left):
        records = _records(sets.train[number], examples, stored, likeliest, batch_size)
        with replaced_file(partial / name) as path, path.open("wb") as file:
            np.save(file, records)


def _records(examples: Examples, numbers: range, stored: Stored, likeliest: Likeliest, batch_size: int) -> np.ndarray:
    """Return the records `[numbers, L]` of some examples. The last batch is filled with its own first row."""
    records = np.zeros((len(numbers), stored.seq_len), stored.record)
    for start in range(0, len(numbers), batch_size):
        rows = [examples[number] for number in numbers[start : start + batch_size]]
        filled = rows + rows[:1] * (batch_size - len(rows))
        batch = Example(**{name: np.stack([row[name] for row in filled]) for name in rows[0]})  # pyright: ignore
        found = likeliest(batch)
        part = records[start : start + len(rows)]
        part["ids"], part["log_probs"], part["rest"] = (array[: len(rows)] for array in found)
        if not (np.isfinite(part["log_probs"]).all() and np.isfinite(part["rest"]).all()):
            raise ValueError(
                f"teacher: found log-probabilities that are not finite at training example {numbers[start]} or one of "
                f"the {len(rows) - 1} after it, expected numbers; the teacher is damaged or overflows"
            )
    return records
