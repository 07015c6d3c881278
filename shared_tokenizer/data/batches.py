"""Shard sets -> shuffled, mixed, host-sharded batches (grain), the same for every framework."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from shared_tokenizer.data.examples import Example, Examples, PackedDocuments, Windows
from shared_tokenizer.data.shards import Split, TokenShards, read_manifest

if TYPE_CHECKING:
    import grain

Packing = Literal["auto", "windows", "best_fit"]
# A batch has the arrays of an example with a batch axis in front: `[B, L]`.
Batch = Example
# More examples than any run takes. grain's own length of endless data overflows where a host's batch is one example.
ENDLESS = 2**62


@dataclass(frozen=True)
class BatchOrder:
    """The settings that decide which examples a part of the run (a host, or hosts that share examples) gets at a step.

    `batch_size` counts the examples of all parts together. Raises ValueError where it is no multiple of `num_parts`.
    """

    batch_size: int
    seed: int
    part: int = 0
    num_parts: int = 1

    def __post_init__(self) -> None:
        if self.batch_size % self.num_parts:
            raise ValueError(f"batch_size: found {self.batch_size}, expected a multiple of the {self.num_parts} hosts")


def open_examples(
    data_dir: Path, split: Split, seq_len: int, *, packing: Packing = "auto", document_mask: bool = True
) -> Examples:
    """Return the examples of one split of a shard set, each of `seq_len` tokens.

    Packing auto takes best_fit for chats and windows for text. Raises ValueError where the set is damaged or holds
    nothing to learn, and for best_fit without `document_mask`.
    """
    name = f"{data_dir} ({split})"
    shards = TokenShards.open(data_dir, split)
    if packing == "best_fit" or (packing == "auto" and read_manifest(data_dir)["masked"]):
        if not document_mask:
            raise ValueError(
                "document_mask: false is not possible with packing best_fit, which always separates documents; use "
                "--packing windows"
            )
        return PackedDocuments(shards, seq_len, name)
    return Windows(shards, seq_len, name, document_mask=document_mask)


def training_batches(
    sets: Sequence[Examples], order: BatchOrder, weights: Sequence[float] | None = None
) -> "grain.IterDataset[Example]":
    """Return an endless stream of batches `[batch_size / num_parts, L]`, each set shuffled anew every epoch.

    `weights` are the shares of the sets among the examples, by default their sizes. The batch of step k of all hosts
    together depends on (sets, weights, batch_size, seed, k) alone, so a run may resume with another number of hosts.
    Within an epoch of a set every example comes once. Raises ValueError where the weights do not fit the sets, and
    where all examples together are fewer than one batch.
    """
    weights = [len(examples) for examples in sets] if weights is None else weights
    if len(weights) != len(sets) or not all(weight > 0 and math.isfinite(weight) for weight in weights):
        raise ValueError(
            f"data_weights: found {list(weights)}, expected {len(sets)} positive numbers, one per data_dir"
        )
    if (examples := sum(map(len, sets))) < order.batch_size:
        raise ValueError(
            f"batch_size: found {order.batch_size}, but the training data holds only {examples} examples; "
            "prepare more text, or set a smaller batch_size or seq_len"
        )
    import grain  # here, as it imports JAX, which takes seconds: the settings of every run import this file

    endless = [grain.MapDataset.source(examples).seed(order.seed).shuffle().repeat(None) for examples in sets]
    dataset = endless[0] if len(sets) == 1 else grain.MapDataset.mix(endless, weights=weights)
    dataset = dataset[order.part : ENDLESS : order.num_parts].batch(order.batch_size // order.num_parts)
    return dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8))


def evaluation_batches(sets: Sequence[Examples], batch_size: int, max_batches: int) -> list[Example]:
    """Return the first examples of each set, in order, as batches `[batch_size, L]`.

    Every set gets the same share of `max_batches`, at least one batch. The last batch of a set is filled with rows
    that are masked from the loss.
    """
    share = max(1, max_batches // len(sets))
    return [batch for examples in sets for batch in _in_order(examples, batch_size, share)]


def _in_order(examples: Examples, batch_size: int, max_batches: int) -> list[Example]:
    batches = []
    for start in range(0, min(len(examples), batch_size * max_batches), batch_size):
        rows = [examples[i] for i in range(start, min(start + batch_size, len(examples)))]
        blank = Example(**{key: np.zeros_like(value) for key, value in rows[0].items()})  # pyright: ignore
        rows += [blank] * (batch_size - len(rows))
        batches.append(Example(**{key: np.stack([row[key] for row in rows]) for key in rows[0]}))  # pyright: ignore
    return batches
