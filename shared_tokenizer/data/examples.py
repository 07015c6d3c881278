"""Token shards -> training examples of one length: windows over the concatenated text, or packed documents."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NotRequired, Protocol, TypedDict

import numpy as np

from shared_tokenizer.data.shards import Span, TokenShards

# A larger fraction of dropped documents is reported with a remedy.
MUCH_DROPPED = 0.05


class Example(TypedDict):
    """Arrays `[L]`, or `[B, L]` in a batch: all int32, but for `loss_mask`, bool, and floats of a teacher.

    Attention and recurrent state stay within a segment; positions count from its start.
    """

    inputs: np.ndarray
    targets: np.ndarray
    positions: np.ndarray
    segment_ids: NotRequired[np.ndarray]  # left out where every row is one segment, which has faster kernels
    loss_mask: np.ndarray
    pair: NotRequired[np.ndarray]  # of a pair of rows `[2, L]` (see `pairs.Pairs`) its number, `[]`
    # Of a stored teacher: its likeliest tokens `[L, k]`, their log-probabilities, and the others together `[L]`.
    teacher_ids: NotRequired[np.ndarray]
    teacher_log_probs: NotRequired[np.ndarray]
    teacher_rest: NotRequired[np.ndarray]


class Examples(Protocol):
    """A sequence of examples in a fixed order."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


class Windows:
    """Examples that cut a sequence of tokens at every multiple of `seq_len`.

    Example i has the inputs from token i * seq_len on. The last one is filled with masked tokens. So each token is
    predicted once, except the first of every document. Without `document_mask` attention and state cross from one
    document to the next. `name` stands in messages. Raises ValueError where there are fewer than two tokens.
    """

    def __init__(self, shards: TokenShards, seq_len: int, name: str, *, document_mask: bool = True):
        self._shards, self._seq_len, self._document_mask = shards, seq_len, document_mask
        if len(shards) < 2:
            raise ValueError(f"{name}: found {len(shards)} tokens, expected at least two; prepare more text")

    def __len__(self) -> int:
        return -(-(len(self._shards) - 1) // self._seq_len)

    def __getitem__(self, index: int) -> Example:
        span = self._shards.read(index * self._seq_len, self._seq_len + 1)
        return to_example([span], self._seq_len, document_mask=self._document_mask)


def to_example(spans: Sequence[Span], seq_len: int, *, document_mask: bool = True) -> Example:
    """Return an example `[seq_len]` of spans one after another, with the next token of each as its target.

    A span of n tokens makes n - 1 pairs of input and target. The first token of a document is never a target of the
    loss. Each document and each span is a segment, and so is the filling at the end.
    """
    inputs, targets = np.zeros(seq_len, np.int32), np.zeros(seq_len, np.int32)
    loss_mask, is_segment_start = np.zeros(seq_len, bool), np.zeros(seq_len, bool)
    end = 0
    for span in spans:
        start, end = end, end + len(span.ids) - 1
        inputs[start:end], targets[start:end] = span.ids[:-1], span.ids[1:]
        loss_mask[start:end] = (span.loss_mask & ~span.is_document_start)[1:]
        is_segment_start[start:end] = span.is_document_start[:-1]
        is_segment_start[start] = True
    is_segment_start[end : end + 1] = True
    index = np.arange(seq_len, dtype=np.int32)
    if not document_mask:
        return Example(inputs=inputs, targets=targets, positions=index, loss_mask=loss_mask)
    return Example(
        inputs=inputs,
        targets=targets,
        positions=index - np.maximum.accumulate(np.where(is_segment_start, index, 0)),
        segment_ids=(np.cumsum(is_segment_start) - 1).astype(np.int32),
        loss_mask=loss_mask,
    )


@dataclass(frozen=True)
class PackingReport:
    """Statistics of a packed split."""

    documents: int
    examples: int
    cut: int
    """Documents that are longer than an example: a chat is cut after a turn, a text into several pieces."""
    dropped: int
    """Documents without a token in the loss mask that fits: chats whose first answer ends too late."""
    fill: float
    """Fraction of the tokens of all examples that are not filling."""
    usual_length: int
    """95th percentile of the documents' lengths, in tokens."""

    def __str__(self) -> str:
        line = (
            f"{self.documents:,} documents packed into {self.examples:,} examples, {self.fill:.1%} full; "
            f"{self.cut:,} cut to fit, {self.dropped:,} dropped"
        )
        if self.dropped > MUCH_DROPPED * self.documents:
            line += f" because none of their answers fits; seq_len {self.usual_length} would hold 95 % of all uncut"
        return line


class PackedDocuments:
    """Examples of `seq_len` tokens into which documents are packed by best fit; each lies in one example.

    A longer chat is cut after the last assistant turn that fits; a longer text is cut into pieces. `name` stands in
    messages. Raises ValueError where no token is left for the loss.
    """

    def __init__(self, shards: TokenShards, seq_len: int, name: str):
        self._shards, self._seq_len = shards, seq_len
        pieces, cut, dropped = _cut_to_fit(shards, seq_len)
        if not len(pieces):
            raise ValueError(
                f"{name}: found nothing to learn in {len(shards.document_ends)} documents of at most seq_len {seq_len} "
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
    """Return start and length of every piece, int64 `[pieces, 2]`, and the numbers of documents cut and dropped."""
    ends = shards.document_ends
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    pieces: list[tuple[int, int]] = []
    cut = dropped = 0
    for start, length in zip(starts.tolist(), (ends - starts).tolist(), strict=True):
        if length <= seq_len + 1 and shards.masks is None:
            found = [(start, length)] if length > 1 else []
        else:
            found = _fitting_pieces(shards.read(start, length).loss_mask, start, seq_len + 1)
        cut += bool(found) and length > seq_len + 1
        dropped += not found
        pieces += found
    return np.array(pieces, np.int64).reshape(-1, 2), cut, dropped


def _fitting_pieces(loss_mask: np.ndarray, start: int, longest: int) -> list[tuple[int, int]]:
    """Return start and length of the pieces to keep of a document at `start` with loss mask `[tokens]`.

    The first token of a piece is never a target.
    """
    if loss_mask.all():
        # Two pieces share one token: it is the last target of one and the first input of the next.
        cuts = range(0, max(len(loss_mask) - 1, 0), longest - 1)
        return [(start + cut, min(longest, len(loss_mask) - cut)) for cut in cuts]
    turn_ends = np.flatnonzero(loss_mask[:-1] & ~loss_mask[1:]) + 1
    if len(loss_mask) > longest:
        fitting = turn_ends[turn_ends <= longest]
        loss_mask = loss_mask[: fitting[-1] if len(fitting) else 0]
    return [(start, len(loss_mask))] if loss_mask[1:].any() else []


def best_fit(lengths: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Pack items by best-fit decreasing: each, longest first, goes into the bin that it leaves the least room in.

    `lengths` int64 `[items]` are from 1 to `capacity`. Returns the indices of the items, bin by bin, int64 `[items]`,
    and the start of each bin among them, int64 `[bins + 1]`. Source: D. S. Johnson, Fast algorithms for bin packing,
    J. Comput. Syst. Sci. 8 (1974).
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
