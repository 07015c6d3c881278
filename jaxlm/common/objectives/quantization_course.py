"""The course of quantization in a run: float first, then more and more of it, then a ternary model to the end."""

from dataclasses import dataclass
from typing import Literal

# Of a step: nothing is quantized, a share is, everything is.
Phase = Literal["float", "mixed", "ternary"]


@dataclass(frozen=True)
class QuantizationCourse:
    """The share of quantization: 0 for `float_steps` steps, then rising linearly for `mixed_steps` steps, then 1.

    `has_new_norms` tells that sub-norms are inserted, and mixed in by the same share.
    """

    float_steps: int = 0
    mixed_steps: int = 0
    has_new_norms: bool = False

    def share(self, step: int) -> float:
        """Return the share of a step, counted from 0."""
        if step < self.float_steps:
            return 0.0
        done = step - self.float_steps
        return 1.0 if done >= self.mixed_steps else done / self.mixed_steps

    def phase(self, step: int) -> Phase:
        """Return the phase of a step, counted from 0."""
        share = self.share(step)
        return "ternary" if share == 1 else "mixed" if share else "float"

    @property
    def begins(self) -> tuple[int, ...]:
        """Steps at which a phase may begin, counted from 0."""
        return 0, self.float_steps, self.float_steps + 1, self.float_steps + self.mixed_steps

    def phases(self, first: int, last: int) -> list[Phase]:
        """Return the phases of the steps `first` to `last`, counted from 0, in their order."""
        ends = (first, self.float_steps + 1, self.float_steps + self.mixed_steps, last)
        return list(dict.fromkeys(self.phase(step) for step in sorted(ends) if first <= step <= last))


def quantization_course(
    *,
    quantizes: bool,
    float_until: float | None,
    mixed_steps: int | None,
    has_new_norms: bool,
    num_train_steps: int,
) -> QuantizationCourse:
    """Return the course of a run of `num_train_steps` steps.

    `float_until` is the setting quantize_from_step: a number of steps, or below 1 a share of them. `mixed_steps` is
    quantize_steps: without it half of the steps that are left where a float model `quantizes`, none otherwise. Raises
    ValueError where the last step would not be one of the ternary model.
    """
    first = float_until or 0
    float_steps = round(first * num_train_steps) if first < 1 else int(first)
    left = num_train_steps - 1 - float_steps
    if left < 0:
        raise ValueError(
            f"quantize_from_step: found {float_until:g}, expected at most {num_train_steps - 1}, so that the last of "
            f"{num_train_steps} training steps is one of the ternary model"
        )
    if mixed_steps is None:
        mixed_steps = (num_train_steps - float_steps) // 2 if quantizes else 0
    if mixed_steps > left:
        raise ValueError(
            f"quantize_steps: found {mixed_steps}, expected at most {left}, so that the last of {num_train_steps} "
            "training steps is one of the ternary model"
        )
    return QuantizationCourse(float_steps, mixed_steps, has_new_norms)
