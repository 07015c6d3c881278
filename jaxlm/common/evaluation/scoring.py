"""Rows of ids -> batches by length -> the log-probability of each token, the same in every framework."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

SMALLEST_LENGTH = 32
TOKENS_PER_BATCH = 4096
# What shows progress over the batches.
Track = Callable[[Sequence[list[int]]], Iterable[list[int]]]


class ScoredPlaces(NamedTuple):
    """Scores at S places of a batch."""

    logprobs: np.ndarray
    """Float32 `[S]`, natural log of the probability of each target."""
    is_greedy: np.ndarray
    """Bool `[S]`, True where the target is the likeliest token; of equal ones the first in the vocabulary is."""
    top_ids: np.ndarray
    """Int32 `[S, top]`, the likeliest tokens in falling order."""
    top_logprobs: np.ndarray
    """Float32 `[S, top]`."""


# Inputs int32 `[B, L]`, padded behind each row; places int32 `[S]`, indices into all B * L positions, which are padded
# with 0; targets int32 `[S]`.
ScorePlaces = Callable[[np.ndarray, np.ndarray, np.ndarray], ScoredPlaces]


@dataclass(frozen=True)
class TokenScores:
    """Scores of the n tokens of a row that follow its context."""

    logprobs: np.ndarray
    """Float32 `[n]`, natural log of each token's probability given all tokens before it."""
    is_greedy: np.ndarray
    """Bool `[n]`, True where the token is the likeliest one."""
    top_ids: np.ndarray
    """Int32 `[n + 1, top]`, the likeliest tokens at each of these places and after the row's end; `[n, 0]` without."""
    top_logprobs: np.ndarray
    """Float32 of the same shape."""


def score_rows(
    rows: Sequence[Sequence[int]],
    context_lengths: Sequence[int],
    score_places: ScorePlaces,
    *,
    vocab_size: int,
    max_seq_len: int,
    top: int = 0,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    track: Track = iter,
) -> list[TokenScores]:
    """Return the scores of each row's tokens but the first `context_length` ones, in the order of the rows.

    A model sees at most `max_seq_len` tokens, so rows have at most one more, or with `top` no more. Rows of similar
    length make a batch of about `tokens_per_batch` tokens; lengths and numbers are rounded up to few sizes, for which
    programs are compiled. Raises ValueError on a row that is empty, too long or of another vocabulary, and on a context
    without a token.
    """
    if not 0 <= top <= vocab_size:
        raise ValueError(f"top: found {top}, expected 0 to {vocab_size}, the tokens of the vocabulary")
    inputs = [np.asarray(row if top else row[:-1], np.int32) for row in rows]
    for number, (row, context) in enumerate(zip(rows, context_lengths, strict=True)):
        _check_row(number, row, context, len(inputs[number]), vocab_size, max_seq_len)
    by_length = sorted(range(len(rows)), key=lambda number: len(inputs[number]), reverse=True)
    found: list[TokenScores | None] = [None] * len(rows)
    for numbers in track(_batches([len(inputs[number]) for number in by_length], by_length, tokens_per_batch)):
        length = min(padded_length(len(inputs[numbers[0]])), max_seq_len)
        batch = np.zeros((_power_of_two(len(numbers)), length), np.int32)
        places, targets = list[np.ndarray](), list[np.ndarray]()
        for index, number in enumerate(numbers):
            batch[index, : len(inputs[number])] = inputs[number]
            first = context_lengths[number] - 1
            places.append(index * length + np.arange(first, len(inputs[number])))
            # After the end of a row there is no target; the likeliest tokens are asked for.
            targets.append(np.asarray([*rows[number][first + 1 :], *([0] if top else [])], np.int32))
        scores = score_places(batch, *padded_places(np.concatenate(places), np.concatenate(targets)))
        start = 0
        for number, ids in zip(numbers, targets, strict=True):
            here, known = slice(start, start + len(ids)), slice(start, start + len(ids) - bool(top))
            found[number] = TokenScores(
                scores.logprobs[known], scores.is_greedy[known], scores.top_ids[here], scores.top_logprobs[here]
            )
            start += len(ids)
    return [scores for scores in found if scores is not None]


def padded_places(places: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return places and targets `[S]` as int32, padded with 0 to one of few lengths."""
    padding = (0, padded_length(len(places)) - len(places))
    return np.pad(places, padding).astype(np.int32), np.pad(targets, padding).astype(np.int32)


def padded_length(length: int) -> int:
    """Return the next of the lengths 32, 48, 64, 96, 128, ...: powers of two, and one and a half of them."""
    power = _power_of_two(max(length, SMALLEST_LENGTH))
    return power * 3 // 4 if power > SMALLEST_LENGTH and length <= power * 3 // 4 else power


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _batches(lengths: Sequence[int], numbers: Sequence[int], tokens_per_batch: int) -> list[list[int]]:
    """Return the numbers of rows, longest first, in batches; as many as a power of two, but for the last ones."""
    batches, start = list[list[int]](), 0
    while start < len(numbers):
        fitting = max(1, tokens_per_batch // padded_length(lengths[start]))
        size = 1 << (fitting.bit_length() - 1)
        batches.append(list(numbers[start : start + size]))
        start += size
    return batches


def _check_row(
    number: int, row: Sequence[int], context: int, num_inputs: int, vocab_size: int, max_seq_len: int
) -> None:
    if not 1 <= context <= len(row):
        raise ValueError(
            f"row {number}: found a context of {context} tokens in a row of {len(row)}, expected 1 to {len(row)}"
        )
    if num_inputs > max_seq_len:
        raise ValueError(
            f"row {number}: found {len(row)} tokens, expected at most {len(row) - num_inputs + max_seq_len} in the "
            f"model's context of {max_seq_len}; cut the row"
        )
    low, high = min(row), max(row)
    if low < 0 or high >= vocab_size:
        raise ValueError(
            f"row {number}: found token {low if low < 0 else high}, expected 0..{vocab_size - 1}; it belongs to "
            "another tokenizer"
        )
