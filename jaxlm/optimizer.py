"""Learning-rate schedules and AdamW."""

from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
import optax
from flax.traverse_util import path_aware_map

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
        bounds = {
            "learning_rate": self.learning_rate > 0,
            "warmup_steps": self.warmup_steps >= 0,
            "final_fraction": 0 <= self.final_fraction <= 1,
            "num_cycles": self.num_cycles is None or self.num_cycles > 0,
            "decay_fraction": self.decay_fraction is None or 0 < self.decay_fraction <= 1,
            "second_learning_rate": self.second_learning_rate is None or self.second_learning_rate > 0,
            "weight_decay": self.weight_decay >= 0,
            "b1": 0 <= self.b1 < 1,
            "b2": 0 <= self.b2 < 1,
            "eps": self.eps > 0,
            "grad_clip_norm": self.grad_clip_norm >= 0,
        }
        for name, holds in bounds.items():
            if not holds:
                raise ValueError(f"optimizer.{name}: found {getattr(self, name)}, which is out of range")
        for name, (schedule, _) in _OWN_SETTINGS.items():
            if getattr(self, name) is not None and self.schedule != schedule:
                raise ValueError(
                    f"optimizer.{name}: has no effect with schedule {self.schedule!r}, only with {schedule!r}"
                )

    def own(self, name: str) -> Any:
        """A setting that only one schedule reads, or its default."""
        value = getattr(self, name)
        return _OWN_SETTINGS[name][1] if value is None else value


def learning_rate_schedule(config: OptimizerConfig, num_train_steps: int) -> optax.Schedule:
    """Learning rate by step. Raises ValueError where the warm-up leaves no step to train."""
    warmup = config.warmup_steps
    if warmup >= num_train_steps:
        raise ValueError(
            f"optimizer.warmup_steps: found {warmup}, expected fewer than num_train_steps {num_train_steps}"
        )
    after = _after_warmup(config, num_train_steps - warmup, num_train_steps)
    if warmup == 0:
        return after
    # From peak / warmup up: a first step at rate 0 would train nothing.
    rise = optax.linear_schedule(config.learning_rate / warmup, config.learning_rate, max(1, warmup - 1))
    return optax.join_schedules([rise, after], [warmup])


def _after_warmup(config: OptimizerConfig, steps: int, num_train_steps: int) -> optax.Schedule:
    peak, final = config.learning_rate, config.final_fraction
    if config.schedule == "cosine":
        return optax.cosine_decay_schedule(peak, steps, alpha=final)
    if config.schedule == "linear":
        return optax.linear_schedule(peak, peak * final, steps)
    if config.schedule == "wsd":
        decay = max(1, round(config.own("decay_fraction") * num_train_steps))
        return optax.linear_schedule(peak, peak * final, decay, transition_begin=max(0, steps - decay))
    if config.schedule == "cosine_restarts":
        cycles = config.own("num_cycles")
        ends = [round(steps * (i + 1) / cycles) for i in range(cycles)]
        lengths = [max(1, end - start) for start, end in zip([0, *ends], ends, strict=False)]
        return optax.join_schedules([optax.cosine_decay_schedule(peak, n, alpha=final) for n in lengths], ends[:-1])
    # Two stages (facts of the BitNet b1.58 training notes): the first is the first half of a decay to zero.
    half = second_stage_start(num_train_steps) - (num_train_steps - steps)
    second = config.own("second_learning_rate") or peak * 2 / 3
    first = optax.linear_schedule(peak, 0.0, steps)
    return optax.join_schedules([first, optax.linear_schedule(second, 0.0, steps - half)], [half])


def second_stage_start(num_train_steps: int) -> int:
    """The step at which the two-stage recipe drops its learning rate and ends its weight decay."""
    return num_train_steps // 2


def weight_decay_schedule(config: OptimizerConfig, num_train_steps: int) -> optax.ScalarOrSchedule:
    """Weight decay by step: constant, but none in the second stage of two_stage."""
    if config.schedule != "two_stage":
        return config.weight_decay
    start = second_stage_start(num_train_steps)
    return lambda step: jnp.where(jnp.asarray(step) < start, config.weight_decay, 0.0)


def decay_mask(params: Any) -> Any:
    """True for the leaves that are decayed, by name: the matrices, but no norms, embeddings or lower bounds."""
    spared = ("embed_tokens", "lower_bounds")
    return path_aware_map(lambda path, _: not any("norm" in str(key) or key in spared for key in path), params)


def make_optimizer(config: OptimizerConfig, num_train_steps: int) -> optax.GradientTransformation:
    """AdamW (arXiv 1711.05101) behind a clip of the global gradient norm."""
    adamw = optax.adamw(
        learning_rate_schedule(config, num_train_steps),
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        mu_dtype=config.first_moment_dtype,
        weight_decay=weight_decay_schedule(config, num_train_steps),
        mask=decay_mask,
    )
    if config.grad_clip_norm == 0:
        return adamw
    return optax.chain(optax.clip_by_global_norm(config.grad_clip_norm), adamw)
