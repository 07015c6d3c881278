"""Shard sets -> this process's batches, the same ones as in JAX, as MLX arrays."""

from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx

from mlxlm.model.loss import Batch
from shared_tokenizer.data.batches import BatchOrder, training_batches
from shared_tokenizer.data.data_sets import DataSets


class ProcessBatches(Iterator[Batch]):
    """This process's share of endless batches (see `shared_tokenizer.data.batches.training_batches`).

    Arrays `[batch_size / processes, L]` by the names of `shared_tokenizer.data.examples.Example`.
    """

    def __init__(self, sets: DataSets, batch_size: int, seed: int, weights: Sequence[float] | None = None):
        group = mx.distributed.init()
        order = BatchOrder(batch_size, seed, group.rank(), group.size())
        self._iterator = iter(training_batches(sets.train, order, weights))

    def __next__(self) -> Batch:
        example = next(self._iterator)
        return {name: mx.array(example[name]) for name in example}

    def get_state(self) -> dict[str, Any]:
        """Return the position in the data, the same in every process, as values that JSON can hold."""
        return self._iterator.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Go to a position that `get_state` returned, here or in JAX."""
        self._iterator.set_state(state)
