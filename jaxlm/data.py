"""Shard sets -> this host's batches."""

from collections.abc import Sequence

import grain
import jax

from shared_tokenizer.batches import BatchOrder, training_batches
from shared_tokenizer.data_sets import DataSets
from shared_tokenizer.examples import Example

Batch = Example


def host_batches(
    sets: DataSets, batch_size: int, seed: int, weights: Sequence[float] | None = None
) -> grain.IterDataset[Batch]:
    """This host's share of endless batches (see `shared_tokenizer.batches.training_batches`)."""
    order = BatchOrder(batch_size, seed, jax.process_index(), jax.process_count())
    return training_batches(sets.train, order, weights)
