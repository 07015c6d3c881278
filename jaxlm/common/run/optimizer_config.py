"""The optimizer's settings, and its learning rate and weight decay per step as plain numbers.

Every framework builds its own optimizer from them.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from shared_tokenizer.settings import check_bounds, setting

ScheduleName = Literal["cosine", "cosine_restarts", "wsd", "linear", "two_stage"]
OptimizerName = Literal["adamw", "muon"]
WeightDecaySchedule = Literal["constant", "zero_at_half"]
# Setting -> the only schedule that reads it, and its default there.
_OWN_SETTINGS: dict[str, tuple[str, Any]] = {
    "num_cycles": ("cosine_restarts", 4),
    "decay_fraction": ("wsd", 0.2),
    "second_learning_rate": ("two_stage", None),
}
_MUON_MOMENTUM = 0.95
# Muon's updates are orthogonal matrices times this and sqrt(max(O, I)): their root mean square is then 0.2, near that
# of AdamW's, so that one learning rate serves both (arXiv 2502.16982).
MUON_RMS = 0.2
# Newton-Schulz iterations that make a matrix nearly orthogonal. Three cost 0.6 of the usual five and train ternary and
# float models as well (docs/quality.md).
NEWTON_SCHULZ_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer and its schedule. Raises ValueError on a value out of range or without effect."""

    name: OptimizerName = setting("adamw")
    """adamw; or muon, which orthogonalizes the momentum of the matrices of the blocks and updates all else by AdamW.
    Both take the same learning rate."""
    learning_rate: float = setting(3e-3, basic=True, more_than=0)
    """Peak learning rate."""
    schedule: ScheduleName = setting("cosine")
    """Course after the warm-up: cosine falls to the final rate; cosine_restarts does so several times; wsd stays flat,
    then falls linearly to the final rate; linear; two_stage is the BitNet recipe, a linear decay that drops to
    second_learning_rate at half time, when weight decay ends too (see weight_decay_schedule)."""
    warmup_steps: int = setting(100, basic=True, at_least=0)
    """Optimizer steps of linear warm-up; a tenth of the steps where the run is not longer than that."""
    final_fraction: float = setting(0.1, at_least=0, at_most=1)
    """Final learning rate as a fraction of the peak (two_stage always ends at 0)."""
    num_cycles: int | None = setting(None, at_least=1)
    """cosine_restarts: number of cosines (4 if not given)."""
    decay_fraction: float | None = setting(None, more_than=0, at_most=1)
    """wsd: share of all steps in the final decay (0.2 if not given)."""
    second_learning_rate: float | None = setting(None, more_than=0)
    """two_stage: learning rate at the start of the second half (2/3 of the peak if not given)."""
    weight_decay: float = setting(0.1, at_least=0)
    """Decoupled weight decay of the matrices, per step and unit of learning rate; norms and embeddings are not
    decayed."""
    weight_decay_schedule: WeightDecaySchedule | None = setting(None)
    """Course of the weight decay: constant, or zero_at_half, which ends it at half of the steps; by default the latter
    with two_stage, else the former."""
    b1: float = setting(0.9, at_least=0, less_than=1)
    """Adam's decay of the first moment, per step."""
    b2: float = setting(0.95, at_least=0, less_than=1)
    """Adam's decay of the second moment, per step."""
    eps: float = setting(1e-8, more_than=0)
    """Adam's epsilon."""
    muon_momentum: float | None = setting(None, at_least=0, less_than=1)
    """muon: decay of the momentum of the matrices, per step (0.95 if not given)."""
    first_moment_dtype: Literal["float32", "bfloat16"] = setting("float32")
    """Precision of Adam's first moment and Muon's momentum; Adam's second moment needs float32."""
    grad_clip_norm: float = setting(1.0, at_least=0)
    """Largest global norm of the gradient; 0 does not clip."""

    def __post_init__(self) -> None:
        check_bounds(self, "optimizer.")
        for name, (schedule, _) in _OWN_SETTINGS.items():
            if getattr(self, name) is not None and self.schedule != schedule:
                raise ValueError(
                    f"optimizer.{name}: has no effect with schedule {self.schedule!r}, only with {schedule!r}"
                )
        if self.muon_momentum is not None and self.name != "muon":
            raise ValueError(f"optimizer.muon_momentum: has no effect with name {self.name!r}, only with 'muon'")
        if self.weight_decay_schedule is not None and self.weight_decay == 0:
            raise ValueError("optimizer.weight_decay_schedule: has no effect with weight_decay 0")

    def own(self, name: str) -> Any:
        """Return a setting that only one schedule reads, or its default."""
        value = getattr(self, name)
        return _OWN_SETTINGS[name][1] if value is None else value

    @property
    def momentum(self) -> float:
        """Decay of Muon's momentum, per step."""
        return _MUON_MOMENTUM if self.muon_momentum is None else self.muon_momentum


@dataclass(frozen=True)
class Piece:
    """A piece of a schedule: from `start` to `end` in `steps` steps, then `end` until the next piece begins."""

    shape: Literal["linear", "cosine"]
    begin: int
    """Optimizer step at which the piece begins."""
    start: float
    end: float
    steps: int


def fit_warmup(config: OptimizerConfig, num_train_steps: int) -> OptimizerConfig:
    """Return the settings with a warm-up that leaves steps to train: one as long as the run is cut to a tenth of it."""
    if config.warmup_steps < num_train_steps:
        return config
    return replace(config, warmup_steps=num_train_steps // 10)


def learning_rate(pieces: Sequence[Piece], step: int) -> float:
    """Return the learning rate of a step, counted from 0."""
    piece = [piece for piece in pieces if piece.begin <= step][-1]
    done = min(step - piece.begin, piece.steps) / piece.steps
    left = 0.5 * (1 + math.cos(math.pi * done)) if piece.shape == "cosine" else 1 - done
    return (piece.start - piece.end) * left + piece.end


def learning_rate_pieces(config: OptimizerConfig, num_train_steps: int) -> list[Piece]:
    """Return the learning rate of every step, from step 0. Raises ValueError where the warm-up leaves no step."""
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
    half = max(warmup, num_train_steps // 2)
    second = config.own("second_learning_rate") or peak * 2 / 3
    return [
        Piece("linear", warmup, peak, 0.0, steps),
        Piece("linear", half, second, 0.0, num_train_steps - half),
    ]


def weight_decay_end(config: OptimizerConfig, num_train_steps: int) -> int | None:
    """Return the step from which there is no weight decay; None where it never ends."""
    schedule = config.weight_decay_schedule or ("zero_at_half" if config.schedule == "two_stage" else "constant")
    return num_train_steps // 2 if schedule == "zero_at_half" else None
