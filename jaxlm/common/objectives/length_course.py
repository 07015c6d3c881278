"""The course of the sequence length in a run: short sequences first, then longer ones, the longest to the end."""

import itertools
import math
from dataclasses import dataclass


@dataclass(frozen=True)
class LengthStage:
    """Steps with sequences of one length, from step `begin`, counted from 0."""

    begin: int
    length: int


@dataclass(frozen=True)
class LengthCourse:
    """The lengths of the sequences, in rising order. Every step has the same number of tokens."""

    stages: tuple[LengthStage, ...]

    @property
    def longest(self) -> int:
        """Length of the last stage, in tokens."""
        return self.stages[-1].length

    def length(self, step: int) -> int:
        """Return the length of the sequences of a step, counted from 0."""
        return [stage for stage in self.stages if stage.begin <= step][-1].length

    def sequences(self, length: int, sequences_of_longest: int) -> int:
        """Return the sequences of a step of this length, which has as many tokens as one of the longest."""
        return sequences_of_longest * self.longest // length


def parse_lengths(schedule: str) -> tuple[tuple[int, float], ...]:
    """Return the (length, share of the steps at whose end it ends) of a setting such as "256:0.3,1024:1".

    Raises ValueError where lengths or shares do not rise, where the last share is not 1, and where a length does not
    divide the longest.
    """

    def refusal(found: object, expected: str) -> ValueError:
        return ValueError(f"seq_len_schedule: found {found}, expected {expected}")

    try:
        pairs = [part.split(":") for part in schedule.split(",")]
        stages = tuple((int(length), float(share)) for length, share in pairs)
    except ValueError as error:
        raise refusal(
            repr(schedule), "lengths with the share of the steps at which each ends: 256:0.3,1024:1"
        ) from error
    for (length, share), (next_length, next_share) in itertools.pairwise([(0, 0.0), *stages]):
        if next_length <= length:
            raise refusal(f"length {next_length} after {length}", "lengths that rise")
        if not (math.isfinite(next_share) and next_share > share):
            raise refusal(f"share {next_share:g} after {share:g}", "shares of the steps that rise from 0 to 1")
    longest, last = stages[-1]
    if last != 1:
        raise refusal(f"a last share of {last:g}", f"1, so that length {longest} is trained to the end")
    for length, _ in stages:
        if longest % length:
            raise refusal(
                f"length {length}", f"a divisor of the longest, {longest}, so that every step has as many tokens"
            )
    return stages


def length_course(schedule: str | None, seq_len: int, num_train_steps: int) -> LengthCourse:
    """Return the course of a run of `num_train_steps` steps; without a schedule all are of `seq_len` tokens.

    Raises ValueError as `parse_lengths`, and where a length would have no step.
    """
    if schedule is None:
        return LengthCourse((LengthStage(0, seq_len),))
    lengths = parse_lengths(schedule)
    ends = [round(share * num_train_steps) for _, share in lengths]
    begins = [0, *ends[:-1]]
    for (length, _), begin, end in zip(lengths, begins, ends, strict=True):
        if begin >= end:
            raise ValueError(
                f"seq_len_schedule: found length {length} without a step among {num_train_steps} training steps, "
                "expected at least one; leave it out, or give it a larger share"
            )
    return LengthCourse(tuple(LengthStage(begin, length) for (length, _), begin in zip(lengths, begins, strict=True)))
