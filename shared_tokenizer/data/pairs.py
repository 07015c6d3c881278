"""Shard sets of pairs -> examples `[2, seq_len]`: the chosen answer and the rejected one, each in a row of its own."""

from dataclasses import dataclass

import numpy as np

from shared_tokenizer.data.examples import MUCH_DROPPED, Example
from shared_tokenizer.data.shards import TokenShards


@dataclass(frozen=True)
class PairsReport:
    """Statistics of a split of pairs."""

    pairs: int
    cut: int
    """Pairs that lose the beginning of their question, because the longer conversation does not fit."""
    dropped: int
    """Pairs of which an answer alone does not fit."""
    fill: float
    """Fraction of the tokens of all rows that are not filling."""
    usual_length: int
    """95th percentile of the lengths of the longer conversations, in tokens."""

    def __str__(self) -> str:
        line = (
            f"{self.pairs:,} pairs of rows, {self.fill:.1%} full; {self.cut:,} lose the beginning of their question to "
            f"fit, {self.dropped:,} dropped"
        )
        if self.cut + self.dropped > MUCH_DROPPED * self.pairs:
            line += f" because an answer does not fit; seq_len {self.usual_length} would hold 95 % of all uncut"
        return line


def pair_numbers(batch: Example) -> np.ndarray:
    """Return the numbers of the pairs of a batch, int32 `[P]`."""
    numbers = batch.get("pair")
    assert numbers is not None
    return numbers


class Pairs:
    """Examples of two rows of `seq_len` tokens: document 2i of a set of pairs and document 2i + 1.

    A row is one conversation from its first position on, filled with masked tokens. Where the longer one does not fit,
    both lose the same number of tokens after their first one; where an answer would lose a token, the pair is left
    out. The array `pair` counts the pairs from `first` on. `name` stands in messages. Raises ValueError where the
    documents are no pairs, and where none of them fits.
    """

    def __init__(self, shards: TokenShards, seq_len: int, name: str, *, first: int = 0):
        self._shards, self._seq_len, self._first = shards, seq_len, first
        ends = shards.document_ends
        if len(ends) % 2 or shards.masks is None:
            raise ValueError(
                f"{name}: found {len(ends)} documents, expected masked ones two by two; prepare them again"
            )
        self._starts = np.concatenate([[0], ends[:-1]]).reshape(-1, 2)
        self._lengths = np.diff(ends, prepend=0).reshape(-1, 2)
        lost = np.maximum(self._lengths.max(axis=1) - (seq_len + 1), 0)
        context = np.array([self._context(pair) if lost[pair] else 0 for pair in range(len(lost))], np.int64)
        fits = (lost == 0) | (lost < context)
        if not fits.any():
            raise ValueError(
                f"{name}: found no pair whose answers fit into seq_len {seq_len}; set a longer seq_len or prepare "
                "other pairs"
            )
        self._kept, self._lost = np.flatnonzero(fits), lost
        targets = (self._lengths - 1 - lost[:, None])[self._kept]
        fill = float(targets.sum()) / (2 * len(self._kept) * seq_len)
        usual = int(np.quantile(self._lengths.max(axis=1), 0.95))
        cut = int((lost[self._kept] > 0).sum())
        self.report = PairsReport(len(lost), cut, len(lost) - len(self._kept), fill, usual)

    def _context(self, pair: int) -> int:
        """Return the tokens before the first answer that is learned, of the row that has fewer of them."""
        return min(
            int(np.argmax(self._shards.read(int(start), int(length)).loss_mask))
            for start, length in zip(self._starts[pair], self._lengths[pair], strict=True)
        )

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> Example:
        pair = self._kept[index]
        lost, rows = int(self._lost[pair]), []
        for start, length in zip(self._starts[pair].tolist(), self._lengths[pair].tolist(), strict=True):
            span = self._shards.read(start, length)
            kept = np.concatenate([[0], np.arange(1 + lost, length)])  # a begin token stays
            rows.append(_row(span.ids[kept], span.loss_mask[kept], self._seq_len))
        return Example(
            inputs=np.stack([row[0] for row in rows]),
            targets=np.stack([row[1] for row in rows]),
            positions=np.tile(np.arange(self._seq_len, dtype=np.int32), (2, 1)),
            loss_mask=np.stack([row[2] for row in rows]),
            pair=np.array(self._first + index, np.int32),
        )


def _row(ids: np.ndarray, loss_mask: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return inputs, targets and loss mask `[seq_len]` of a conversation; the filling comes after all of it."""
    filling = seq_len + 1 - len(ids)
    ids, loss_mask = np.pad(ids, (0, filling)), np.pad(loss_mask, (0, filling))
    return ids[:-1], ids[1:], loss_mask[1:]
