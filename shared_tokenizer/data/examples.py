"""Token shards -> training examples of one length: windows over the concatenated text, or whole documents packed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NotRequired, Protocol, TypedDict

import numpy as np

from shared_tokenizer.data.shards import Span, TokenShards

MUCH_DROPPED = 0.05


class Example(TypedDict):
    """Arrays `[L]`, or `[B, L]` in a batch. Mixing stays within a segment; positions count from its start."""

    inputs: np.ndarray
    targets: np.ndarray
    positions: np.ndarray
    segment_ids: NotRequired[np.ndarray]  # left out where every row is one segment, for which there are faster kernels
    loss_mask: np.ndarray


class Examples(Protocol):
    """Examples by index, in a fixed order."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


class Windows:
    """Windows of `seq_len` tokens and the token after them: example i starts at token i * seq_len.

    The last one is filled up with masked tokens, so each token but the first is predicted once, unless it
    begins a document. Without `document_mask` attention and state cross from one document to the next.
    Raises ValueError where there is nothing to predict.
    """

    def __init__(self, shards: TokenShards, seq_len: int, what: str, *, document_mask: bool = True):
        self._shards, self._seq_len, self._document_mask = shards, seq_len, document_mask
        if len(shards) < 2:
            raise ValueError(f"{what}: found {len(shards)} tokens, expected at least two; prepare more text")

    def __len__(self) -> int:
        return -(-(len(self._shards) - 1) // self._seq_len)

    def __getitem__(self, index: int) -> Example:
        span = self._shards.read(index * self._seq_len, self._seq_len + 1)
        return to_example([span], self._seq_len, document_mask=self._document_mask)


def to_example(spans: Sequence[Span], seq_len: int, *, document_mask: bool = True) -> Example:
    """Lay spans of tokens one after another, each with the tokens that follow as targets, and fill up to `seq_len`.

    A target is learned where its mask says so and it does not begin a document. Each span and what fills up
    are segments of their own.
    """
    inputs, targets = np.zeros(seq_len, np.int32), np.zeros(seq_len, np.int32)
    loss_mask, begins = np.zeros(seq_len, bool), np.zeros(seq_len, bool)
    end = 0
    for span in spans:
        start, end = end, end + len(span.ids) - 1
        inputs[start:end], targets[start:end] = span.ids[:-1], span.ids[1:]
        loss_mask[start:end] = (span.learned & ~span.begins)[1:]
        begins[start:end] = span.begins[:-1]
        begins[start] = True
    begins[end : end + 1] = True
    index = np.arange(seq_len, dtype=np.int32)
    if not document_mask:
        return Example(inputs=inputs, targets=targets, positions=index, loss_mask=loss_mask)
    return Example(
        inputs=inputs,
        targets=targets,
        positions=index - np.maximum.accumulate(np.where(begins, index, 0)),
        segment_ids=(np.cumsum(begins) - 1).astype(np.int32),
        loss_mask=loss_mask,
    )


@dataclass(frozen=True)
class PackingReport:
    """What became of the documents of a packed split."""

    documents: int
    examples: int
    cut: int
    """Too long for an example: a chat ends at its last turn that fits, a text goes on in the next piece."""
    dropped: int
    """Nothing of them that fits is learned: chats whose first answer ends too late."""
    fill: float
    """Share of the tokens of all examples that are not filling."""
    usual_length: int
    """Tokens that 95 % of the documents have at most."""

    def __str__(self) -> str:
        line = (
            f"{self.documents:,} documents packed into {self.examples:,} examples, {self.fill:.1%} full; "
            f"{self.cut:,} cut to fit, {self.dropped:,} dropped"
        )
        if self.dropped > MUCH_DROPPED * self.documents:
            line += f" because no answer of theirs fits; seq_len {self.usual_length} would hold 95 % of all whole"
        return line


class PackedDocuments:
    """Whole documents, packed best fit into examples of `seq_len` tokens; none is shared between two.

    A longer chat is cut after the last assistant turn that fits; a longer text is cut into pieces. Raises
    ValueError where nothing is left to learn.
    """

    def __init__(self, shards: TokenShards, seq_len: int, what: str):
        self._shards, self._seq_len = shards, seq_len
        pieces, cut, dropped = _cut_to_fit(shards, seq_len)
        if not len(pieces):
            raise ValueError(
                f"{what}: found nothing to learn in {len(shards.document_ends)} documents of at most seq_len {seq_len} "
                "tokens; set a longer seq_len or prepare other documents"
            )
        self._pieces = pieces
        # A piece of n tokens makes n - 1 pairs of an input and its target.
        self._order, self._starts = best_fit(pieces[:, 1] - 1, seq_len)
        fill = float((pieces[:, 1] - 1).sum()) / (len(self) * seq_len)
        lengths = np.diff(shards.document_ends, prepend=0)
        usual = int(np.quantile(lengths, 0.95))
        self.report = PackingReport(len(lengths), len(self), cut, dropped, fill, usual)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> Example:
        inside = self._pieces[self._order[self._starts[index] : self._starts[index + 1]]]
        return to_example([self._shards.read(int(start), int(count)) for start, count in inside], self._seq_len)


def _cut_to_fit(shards: TokenShards, seq_len: int) -> tuple[np.ndarray, int, int]:
    """Start and length of every piece `[pieces, 2]` int64, and how many documents were cut and dropped."""
    ends = shards.document_ends
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    pieces: list[tuple[int, int]] = []
    cut = dropped = 0
    for start, length in zip(starts.tolist(), (ends - starts).tolist(), strict=True):
        if length <= seq_len + 1 and shards.masks is None:
            found = [(start, length)] if length > 1 else []
        else:
            found = _fitting_pieces(shards.read(start, length).learned, start, seq_len + 1)
        cut += bool(found) and length > seq_len + 1
        dropped += not found
        pieces += found
    return np.array(pieces, np.int64).reshape(-1, 2), cut, dropped


def _fitting_pieces(learned: np.ndarray, start: int, longest: int) -> list[tuple[int, int]]:
    """What is kept of one document; a token that begins a piece is not predicted in it."""
    if learned.all():
        # One token is shared between two pieces: the target that ends one is the input that begins the next.
        cuts = range(0, max(len(learned) - 1, 0), longest - 1)
        return [(start + at, min(longest, len(learned) - at)) for at in cuts]
    turn_ends = np.flatnonzero(learned[:-1] & ~learned[1:]) + 1
    if len(learned) > longest:
        fitting = turn_ends[turn_ends <= longest]
        learned = learned[: fitting[-1] if len(fitting) else 0]
    return [(start, len(learned))] if learned[1:].any() else []


def best_fit(lengths: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Best-fit-decreasing packing (Johnson 1974): each item, longest first, goes where it leaves the least room.

    Returns the items bin by bin `[items]`, and where each bin begins in them `[bins + 1]`. `lengths` are from
    1 to `capacity`.
    """
    assigned = np.zeros(len(lengths), np.int64)
    room: list[int] = []
    bins_with_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    occupied = 0  # bit r is set where a bin with room r is open
    for item in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[item])
        fitting = occupied >> length
        if fitting:
            before = length + (fitting & -fitting).bit_length() - 1
            chosen = bins_with_room[before].pop()
            if not bins_with_room[before]:
                occupied ^= 1 << before
        else:
            before, chosen = capacity, len(room)
            room.append(capacity)
        assigned[item], room[chosen] = chosen, before - length
        if room[chosen]:
            bins_with_room[room[chosen]].append(chosen)
            occupied |= 1 << room[chosen]
    order = np.argsort(assigned, kind="stable")
    return order, np.searchsorted(assigned[order], np.arange(len(room) + 1))
