"""The log-probabilities of all pairs under the model that a run starts from, computed once and kept next to the run."""

import io
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from shared_tokenizer.data.batches import evaluation_batches
from shared_tokenizer.data.data_sets import DataSets
from shared_tokenizer.data.examples import Example
from shared_tokenizer.data.pairs import pair_numbers
from shared_tokenizer.manifest import DamagedError, sealed_directory, verify_manifest

_ARRAY, _ORIGIN = "log_probs.npy", "reference.json"


def read_reference(directory: Path, origin: Mapping[str, str | int]) -> np.ndarray | str:
    """Return the column of an earlier start, float32 `[pairs, 2]`, or the reason why it has to be computed anew.

    `origin` holds what the column depends on, by name. The reason is empty where there is no column.
    """
    if not directory.is_dir():
        return ""
    try:
        verify_manifest(directory)
        found = json.loads((directory / _ORIGIN).read_text("utf-8"))
        array = np.load(directory / _ARRAY, allow_pickle=False)
    except (DamagedError, OSError, ValueError) as error:
        return f"{directory} is damaged ({error})"
    for name, value in origin.items():
        if found.get(name) != value:
            return f"{directory} is of {name} {str(found.get(name))[:12]}, expected {str(value)[:12]}"
    return array


def write_reference(directory: Path, origin: Mapping[str, str | int], log_probs: np.ndarray) -> None:
    """Write the column, sealed, with what it depends on, where there is none."""
    with sealed_directory(directory) as temporary:
        buffer = io.BytesIO()
        np.save(buffer, log_probs)
        (temporary / _ARRAY).write_bytes(buffer.getvalue())
        (temporary / _ORIGIN).write_text(json.dumps(dict(origin), indent=2) + "\n", "utf-8")


def reference_column(
    directory: Path,
    origin: Mapping[str, str | int],
    sets: DataSets,
    batch_size: int,
    log_probs: Callable[[], Callable[[Example], np.ndarray]],
    *,
    is_writer: bool,
    log: Callable[[str], None],
    check: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Return the column of an earlier start, or compute it and, as the writer, keep it in `directory`.

    `log_probs` is called only where it is computed; for the other arguments and errors see `compute_reference`. The
    reason why an earlier column is not used is logged.
    """
    found = read_reference(directory, origin)
    if not isinstance(found, str):
        return found
    if found:
        log(f"reference: {found}; it is computed anew")
    column = compute_reference(sets, batch_size, log_probs(), log, check)
    if is_writer:
        shutil.rmtree(directory, ignore_errors=True)
        write_reference(directory, origin, column)
    return column


def compute_reference(
    sets: DataSets,
    batch_size: int,
    log_probs: Callable[[Example], np.ndarray],
    log: Callable[[str], None],
    check: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Return the column of all pairs of all sets, in their order, float32 `[pairs, 2]`.

    `log_probs` returns those of a batch `[batch_size, 2]`; `check` runs between batches and may raise. Raises
    ValueError where a number is not finite.
    """
    count = pair_count(sets)
    log(f"reference log-probabilities of {count:,} pairs ...")
    column = np.zeros((count, 2), np.float32)
    for batch in _batches(sets, batch_size):
        check()
        is_pair = batch["loss_mask"].any(axis=(1, 2))
        found = np.asarray(log_probs(batch))[is_pair]
        if not np.isfinite(found).all():
            pair = int(pair_numbers(batch)[is_pair][~np.isfinite(found).all(axis=1)][0])
            raise ValueError(
                f"reference: found a log-probability of pair {pair} that is not finite, expected numbers; the model to "
                "start from is damaged or overflows"
            )
        column[pair_numbers(batch)[is_pair]] = found
    return column


def pair_count(sets: DataSets) -> int:
    """Return the number of pairs of all sets, those held out too."""
    return sum(map(len, (*sets.train, *sets.val)))


def _batches(sets: DataSets, batch_size: int) -> Iterator[Example]:
    for examples in (*sets.train, *sets.val):
        yield from evaluation_batches([examples], batch_size, len(examples))
