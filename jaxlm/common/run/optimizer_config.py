"""AdamW's settings, and the course of its learning rate and weight decay as plain numbers: every framework builds its
own optimizer from them.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from jaxlm.common.bounds import check_bounds

ScheduleName = Literal["cosine", "cosine_restarts", "wsd", "linear", "two_stage"]
# Settings that only one schedule reads, and what they are when not given.
_OWN_SETTINGS: dict[str, tuple[str, Any]] = {
    "num_cycles": ("cosine_restarts", 4),
    "decay_fraction": ("wsd", 0.2),
    "second_learning_rate": ("two_stage", None),
}


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its schedule. Raises ValueError on a value out of range or without effect."""

    learning_rate: float = 3e-3
    """Peak learning rate."""
    schedule: ScheduleName = "cosine"
    """Course after the warm-up: cosine to the final rate; cosine_restarts, several cosines in a row; wsd, flat
    then linear to the final rate; linear; two_stage, the BitNet recipe: a linear decay that drops to
    second_learning_rate at half time, when weight decay ends too."""
    warmup_steps: int = 100
    """Optimizer steps of linear warm-up."""
    final_fraction: float = 0.1
    """Final learning rate as a fraction of the peak (two_stage always ends at 0)."""
    num_cycles: int | None = None
    """cosine_restarts: number of cosines (4 if not given)."""
    decay_fraction: float | None = None
    """wsd: share of all steps in the final decay (0.2 if not given)."""
    second_learning_rate: float | None = None
    """two_stage: learning rate at the start of the second half (2/3 of the peak if not given)."""
    weight_decay: float = 0.1
    """Decoupled weight decay of the matrices; norms and embeddings are not decayed."""
    b1: float = 0.9
    """Adam's decay of the first moment, per step."""
    b2: float = 0.95
    """Adam's decay of the second moment, per step."""
    eps: float = 1e-8
    """Adam's epsilon."""
    first_moment_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision that Adam's first moment is kept in; the second needs float32."""
    grad_clip_norm: float = 1.0
    """Largest global norm of the gradient; 0 does not clip."""

    def __post_init__(self) -> None:
        positive, not_negative, infinity = "more than 0 and finite", "0 or more and finite", float("inf")
        cycles, decay, second = self.num_cycles, self.decay_fraction, self.second_learning_rate
        bounds = {
            "learning_rate": (0 < self.learning_rate < infinity, positive),
            "warmup_steps": (self.warmup_steps >= 0, "0 or more"),
            "final_fraction": (0 <= self.final_fraction <= 1, "0 to 1"),
            "num_cycles": (cycles is None or cycles >= 1, "at least 1"),
            "decay_fraction": (decay is None or 0 < decay <= 1, "more than 0, at most 1"),
            "second_learning_rate": (second is None or 0 < second < infinity, positive),
            "weight_decay": (0 <= self.weight_decay < infinity, not_negative),
            "b1": (0 <= self.b1 < 1, "at least 0, less than 1"),
            "b2": (0 <= self.b2 < 1, "at least 0, less than 1"),
            "eps": (0 < self.eps < infinity, positive),
            "grad_clip_norm": (0 <= self.grad_clip_norm < infinity, not_negative),
        }
        check_bounds(self, bounds, "optimizer.")
        for name, (schedule, _) in _OWN_SETTINGS.items():
            if getattr(self, name) is not None and self.schedule != schedule:
                raise ValueError(
                    f"optimizer.{name}: has no effect with schedule {self.schedule!r}, only with {schedule!r}"
                )

    def own(self, name: str) -> Any:
        """A setting that only one schedule reads, or its default."""
        value = getattr(self, name)
        return _OWN_SETTINGS[name][1] if value is None else value


@dataclass(frozen=True)
class Piece:
    """A part of a schedule: from `start` to `end` over `steps` steps, `end` after them, until the next piece begins."""

    shape: Literal["linear", "cosine"]
    begin: int
    """Optimizer step at which it begins."""
    start: float
    end: float
    steps: int


def learning_rate_pieces(config: OptimizerConfig, num_train_steps: int) -> list[Piece]:
    """The learning rate of every step, from step 0. Raises ValueError where the warm-up leaves no step to train."""
    warmup = config.warmup_steps
    if warmup >= num_train_steps:
        raise ValueError(
            f"optimizer.warmup_steps: found {warmup}, expected fewer than num_train_steps {num_train_steps}"
        )
    after = _after_warmup(config, warmup, num_train_steps)
    if warmup == 0:
        return after
    # From peak / warmup up: a first step at rate 0 would train nothing.
    return [Piece("linear", 0, config.learning_rate / warmup, config.learning_rate, max(1, warmup - 1)), *after]


def _after_warmup(config: OptimizerConfig, warmup: int, num_train_steps: int) -> list[Piece]:
    steps, peak = num_train_steps - warmup, config.learning_rate
    final = peak * config.final_fraction
    if config.schedule == "cosine":
        return [Piece("cosine", warmup, peak, final, steps)]
    if config.schedule == "linear":
        return [Piece("linear", warmup, peak, final, steps)]
    if config.schedule == "wsd":
        decay = max(1, round(config.own("decay_fraction") * num_train_steps))
        flat = max(0, steps - decay)
        return [Piece("linear", warmup, peak, peak, max(1, flat)), Piece("linear", warmup + flat, peak, final, decay)]
    if config.schedule == "cosine_restarts":
        cycles = config.own("num_cycles")
        cuts = [round(steps * i / cycles) for i in range(cycles + 1)]
        return [
            Piece("cosine", warmup + start, peak, final, max(1, end - start)) for start, end in itertools.pairwise(cuts)
        ]
    # Two stages (facts of the BitNet b1.58 training notes): the first is the first half of a decay to zero.
    half = max(warmup, _second_stage_start(num_train_steps))
    second = config.own("second_learning_rate") or peak * 2 / 3
    return [
        Piece("linear", warmup, peak, 0.0, steps),
        Piece("linear", half, second, 0.0, num_train_steps - half),
    ]


def _second_stage_start(num_train_steps: int) -> int:
    """The step at which the two-stage recipe drops its learning rate and ends its weight decay."""
    return num_train_steps // 2


def weight_decay_end(config: OptimizerConfig, num_train_steps: int) -> int | None:
    """The step from which there is no weight decay; None where it never ends."""
    return _second_stage_start(num_train_steps) if config.schedule == "two_stage" else None


def is_decayed(path: Iterable[str]) -> bool:
    """Whether a parameter is decayed, by the parts of its path: matrices, but no norms, embeddings or lower bounds."""
    return not any("norm" in part or part in ("embed_tokens", "lower_bounds") for part in path)
