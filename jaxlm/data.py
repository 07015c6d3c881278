"""Shard sets -> this process's batches."""

from collections.abc import Sequence

import grain

from shared_tokenizer.batches import BatchOrder, training_batches
from shared_tokenizer.data_sets import DataSets
from shared_tokenizer.examples import Example

Batch = Example


def host_batches(
    sets: DataSets,
    batch_size: int,
    seed: int,
    weights: Sequence[float] | None = None,
    share: tuple[int, int] = (0, 1),
) -> grain.IterDataset[Batch]:
    """A part of endless batches (see `shared_tokenizer.batches.training_batches`): `share` is (part, of how many)."""
    return training_batches(sets.train, BatchOrder(batch_size, seed, *share), weights)
