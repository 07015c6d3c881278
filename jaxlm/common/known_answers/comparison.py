"""Numbers that a device computed, compared with those that numpy computes; any difference beyond a tolerance named."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Answer:
    """An array that a device computed, with the right one.

    `tolerance` is the largest difference that rounding explains, relative to the largest magnitude of the right array;
    0 asks for every bit.
    """

    part: str
    name: str
    found: Any
    expected: Any
    tolerance: float = 0.0


class WrongAnswerError(ValueError):
    """A compiler or a device computes something else than numpy."""


def check_answers(answers: Iterable[Answer], device: str, remedy: str) -> int:
    """Return the number of arrays that were compared. Raises WrongAnswerError naming all parts that are wrong.

    `device` names the device with its library, `remedy` says how to go on.
    """
    compared, wrong = 0, []
    for answer in answers:
        compared += 1
        wrong += list(_differences(answer))
    if wrong:
        raise WrongAnswerError(f"known answers: {device} computes {'; '.join(wrong)}. {remedy}")
    return compared


def _differences(answer: Answer) -> Iterator[str]:
    """Yield what is wrong with an answer, if anything is."""
    found, expected = (np.asarray(array).astype(np.float64) for array in (answer.found, answer.expected))
    name = f"{answer.part} ({answer.name})"
    if found.shape != expected.shape:
        yield f"{name} of shape {found.shape}, expected {expected.shape}"
        return
    difference = np.abs(found - expected)
    limit = answer.tolerance * np.abs(expected).max()
    wrong = ~(difference <= limit)  # NaN too
    if wrong.any():
        at = np.unravel_index(np.where(np.isnan(difference), np.inf, difference).argmax(), difference.shape)
        yield (
            f"{name} wrong in {wrong.sum():,} of {wrong.size:,} numbers: found {found[at]:.6g}, expected "
            f"{expected[at]:.6g}, at most {limit:.2g} apart"
        )
