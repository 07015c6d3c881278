"""Token shards -> batches: windows over concatenated documents, shuffled by seed, sharded by host (grain)."""

from pathlib import Path
from typing import TypedDict

import grain
import jax
import numpy as np

from jaxlm.spec.manifest import verify_manifest
from shared_tokenizer.shards import Split, TokenShards, read_manifest


class Batch(TypedDict):
    """Arrays `[B, L]`. Attention stays within a segment; positions count from its start."""

    inputs: np.ndarray
    targets: np.ndarray
    positions: np.ndarray
    segment_ids: np.ndarray
    loss_mask: np.ndarray


class Windows:
    """Windows of `seq_len` tokens and the token after them: example i starts at token i * seq_len.

    Raises ValueError where the split is shorter than one window.
    """

    def __init__(self, shards: TokenShards, seq_len: int, eos_id: int, what: str):
        self._shards, self._seq_len, self._eos_id = shards, seq_len, eos_id
        if len(shards) <= seq_len:
            raise ValueError(
                f"{what}: found {len(shards)} tokens, expected more than one window of seq_len {seq_len}; "
                "prepare more text or set a shorter seq_len"
            )

    def __len__(self) -> int:
        return (len(self._shards) - 1) // self._seq_len

    def __getitem__(self, index: int) -> Batch:
        return to_example(self._shards.read(index * self._seq_len, self._seq_len + 1), self._eos_id)


def to_example(tokens: np.ndarray, eos_id: int) -> Batch:
    """Split ids `[L + 1]` into inputs and targets `[L]`; nothing is predicted across the end of a document."""
    ends = tokens[:-1] == eos_id
    segment_ids = np.concatenate([[0], np.cumsum(ends)]).astype(np.int32)
    index = np.arange(len(tokens), dtype=np.int32)
    starts = np.concatenate([[0], np.where(ends, index[1:], 0)])
    positions = index - np.maximum.accumulate(starts)
    return Batch(
        inputs=tokens[:-1],
        targets=tokens[1:],
        positions=positions[:-1].astype(np.int32),
        segment_ids=segment_ids[:-1],
        loss_mask=segment_ids[:-1] == segment_ids[1:],
    )


def open_windows(data_dir: Path, split: Split, seq_len: int, eos_id: int, *, verify: bool = True) -> Windows:
    """The windows of one split of a shard set; `verify` checks every file's sha256 first."""
    read_manifest(data_dir)
    if verify:
        verify_manifest(Path(data_dir))
    return Windows(TokenShards.open(data_dir, split), seq_len, eos_id, f"{data_dir} ({split})")


def training_batches(windows: Windows, batch_size: int, seed: int) -> grain.IterDataset[Batch]:
    """Endless batches `[batch_size / hosts, L]`, shuffled anew each epoch.

    The batch of step k depends on (seed, k, host layout) alone. Raises ValueError where an epoch is smaller
    than a batch or the batch does not divide among the hosts.
    """
    hosts = jax.process_count()
    if batch_size % hosts:
        raise ValueError(f"batch_size: found {batch_size}, expected a multiple of the {hosts} hosts")
    if len(windows) < batch_size:
        raise ValueError(
            f"batch_size: found {batch_size}, but the training split holds only {len(windows)} windows; "
            "prepare more text, or set a smaller batch_size or seq_len"
        )
    dataset = grain.MapDataset.source(windows).seed(seed).shuffle()
    usable = len(windows) - len(windows) % hosts
    dataset = dataset[:usable][jax.process_index() :: hosts]
    dataset = dataset.repeat(None).batch(batch_size // hosts)
    return dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8))


def evaluation_batches(windows: Windows, batch_size: int, max_batches: int) -> list[Batch]:
    """The first windows in order, at most `max_batches` batches; the last one is filled up with masked rows."""
    batches = []
    for start in range(0, min(len(windows), batch_size * max_batches), batch_size):
        rows = [windows[i] for i in range(start, min(start + batch_size, len(windows)))]
        blank = Batch(**{key: np.zeros_like(value) for key, value in rows[0].items()})  # pyright: ignore
        rows += [blank] * (batch_size - len(rows))
        batches.append(Batch(**{key: np.stack([row[key] for row in rows]) for key in rows[0]}))  # pyright: ignore
    return batches
