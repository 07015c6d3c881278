"""Mean, deviation and interval of a few numbers."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import t as students_t

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Sample:
    """A few measured numbers."""

    mean: float
    deviation: float | None
    """Standard deviation of the sample (with n - 1); None for one number."""
    half_width: float | None
    """Half of the 95 % confidence interval of the mean, by Student's t; None for one number."""
    count: int

    @property
    def high(self) -> float | None:
        """Upper end of the interval."""
        return None if self.half_width is None else self.mean + self.half_width

    def __str__(self) -> str:
        return f"{self.mean:+.4f}" + ("" if self.half_width is None else f" ± {self.half_width:.4f}")


def sample(numbers: Sequence[float]) -> Sample | None:
    """Return mean, standard deviation and interval of numbers; None without any."""
    if not numbers:
        return None
    mean = statistics.fmean(numbers)
    if len(numbers) == 1:
        return Sample(mean, None, None, 1)
    deviation = statistics.stdev(numbers)
    quantile = float(students_t.ppf((1 + CONFIDENCE) / 2, len(numbers) - 1))
    return Sample(mean, deviation, quantile * deviation / math.sqrt(len(numbers)), len(numbers))


def paired_difference(found: Mapping[int, float], base: Mapping[int, float]) -> Sample | None:
    """Return the difference of numbers by seed to those of another variant, over the seeds that both have.

    Pairs share the order of the data, so the noise that the seed causes in both is taken off.
    """
    return sample([value - base[seed] for seed, value in sorted(found.items()) if seed in base])
