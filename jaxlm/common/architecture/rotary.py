"""The frequencies of rotary positions, computed once in float64 for every framework, and their scaling for long texts.

Pair i of a head of width H turns by theta^(-2i / H) radians per position (arXiv 2104.09864).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np

# The fields that each type has next to `type` and `factor`, with their defaults. Those without one are required.
_REQUIRED = object()
_FIELDS: dict[str, dict[str, Any]] = {
    "linear": {},
    "llama3": {"original_max_seq_len": _REQUIRED, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": {
        "original_max_seq_len": _REQUIRED,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "attention_factor": None,
        "truncate": True,
    },
    "longrope": {"original_max_seq_len": _REQUIRED, "factors": _REQUIRED},
}
_OF_EVERY_TYPE = ("type", "factor")


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """A change of the rotary frequencies, for sequences longer than those that the model was first trained on.

    Raises ValueError on construction where a field is missing, out of range, or belongs to another type.
    """

    type: Literal["linear", "llama3", "yarn", "longrope"]
    """linear: all frequencies are divided by `factor` (arXiv 2306.15595). llama3: the low ones (arXiv 2407.21783).
    yarn: the low ones, and cosines and sines grow (arXiv 2309.00071). longrope: each by a factor of its own (arXiv
    2402.13753), here up to the original length only, beyond which its factors change with the text."""
    factor: float = 1.0
    """Divisor of frequencies, at least 1 (all but longrope)."""
    original_max_seq_len: int | None = None
    """Longest sequence before the scaling, in tokens. A frequency makes so many turns in it (all but linear)."""
    factors: tuple[float, ...] | None = None
    """Divisor of each frequency (longrope)."""
    low_freq_factor: float | None = None
    """Frequencies of fewer turns are divided; 1 by default (llama3)."""
    high_freq_factor: float | None = None
    """Frequencies of more turns stay; 4 by default. Between the two they are blended (llama3)."""
    beta_slow: float | None = None
    """Frequencies of fewer turns are divided; 1 by default (yarn)."""
    beta_fast: float | None = None
    """Frequencies of more turns stay; 32 by default. Between the two they are blended (yarn)."""
    attention_factor: float | None = None
    """Factor of cosines and sines, so of queries and of keys; 0.1 ln(factor) + 1 by default (yarn)."""
    truncate: bool | None = None
    """Both bounds of the blended frequencies are rounded outwards to whole pairs; true by default (yarn)."""

    def __post_init__(self) -> None:
        if self.type not in _FIELDS:
            raise ValueError(f"rope_scaling type: found {self.type!r}, expected {' or '.join(map(repr, _FIELDS))}")
        own = _FIELDS[self.type]
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            if name in own and value is None:
                if own[name] is _REQUIRED:
                    raise ValueError(f"rope_scaling {name}: not given, type {self.type!r} needs it")
                object.__setattr__(self, name, own[name])
            elif name not in (*own, *_OF_EVERY_TYPE) and value is not None:
                raise ValueError(f"rope_scaling {name}: found {value!r}, but type {self.type!r} has no such field")
        if isinstance(self.factors, list):
            object.__setattr__(self, "factors", tuple(self.factors))
        self._check_numbers()
        if self.type == "yarn" and self.attention_factor is None:
            object.__setattr__(self, "attention_factor", self.usual_attention_factor)

    def _check_numbers(self) -> None:
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            if name == "type" or value is None:
                continue
            if name == "truncate":
                fits, expected = isinstance(value, bool), "true or false"
            elif name == "original_max_seq_len":
                fits, expected = type(value) is int and value > 0, "an integer above 0"
            elif name == "factors":
                fits, expected = isinstance(value, tuple) and all(map(_is_positive, value)), "numbers above 0"
            elif name == "factor":
                fits, expected = _is_positive(value) and value >= 1, "a number of at least 1"
            else:
                fits, expected = _is_positive(value), "a number above 0"
            if not fits:
                raise ValueError(f"rope_scaling {name}: found {value!r}, expected {expected}")
            if isinstance(value, int) and name not in ("truncate", "original_max_seq_len"):
                object.__setattr__(self, name, float(value))
        for low, high in (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")):
            below, above = getattr(self, low), getattr(self, high)
            if below is not None and above <= below:
                raise ValueError(f"rope_scaling {high}: found {above}, expected more than {low} {below}")

    def check_fits(self, head_dim: int, theta: float, max_seq_len: int) -> None:
        """Raise ValueError where the scaling cannot be that of a model of these fields."""
        if theta <= 1:
            raise ValueError(f"rope_theta: found {theta}, expected more than 1 with rope_scaling")
        if self.factors is None or self.original_max_seq_len is None:
            return
        if len(self.factors) != head_dim // 2:
            raise ValueError(f"rope_scaling factors: found {len(self.factors)}, expected {head_dim // 2}, half a head")
        if max_seq_len > self.original_max_seq_len:
            raise ValueError(
                f"max_seq_len: found {max_seq_len}, expected at most rope_scaling's original_max_seq_len "
                f"{self.original_max_seq_len}; longrope takes other factors for texts beyond it"
            )

    @property
    def usual_attention_factor(self) -> float:
        """The attention factor that YaRN has where none is given."""
        return 0.1 * math.log(self.factor) + 1.0


def rope_scaling_from_dict(content: Mapping[str, Any]) -> RopeScaling:
    """Return the RopeScaling of these fields. Raises ValueError naming fields that are unknown or missing."""
    known = [field.name for field in fields(RopeScaling)]
    if unknown := sorted(set(content) - set(known)):
        raise ValueError(f"rope_scaling: unknown {', '.join(unknown)}; known are {', '.join(known)}")
    needed = ["type"] if content.get("type") == "longrope" else ["type", "factor"]
    if missing := [name for name in needed if content.get(name) is None]:
        raise ValueError(f"rope_scaling: missing {', '.join(missing)}")
    return RopeScaling(**{name: value for name, value in content.items() if value is not None})


def rotary_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None) -> np.ndarray:
    """Return the frequency of each pair of a head, in radians per position: float64 `[head_dim / 2]`."""
    plain = float(theta) ** (-np.arange(0, head_dim, 2) / head_dim)
    if scaling is None:
        return plain
    if scaling.factors is not None:
        return plain / np.array(scaling.factors)
    share = _share_that_stays(plain, theta, scaling)
    return plain * share + plain / scaling.factor * (1 - share)


def rotary_attention_factor(scaling: RopeScaling | None) -> float:
    """Return the factor of the cosines and sines."""
    return 1.0 if scaling is None or scaling.attention_factor is None else scaling.attention_factor


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _share_that_stays(plain: np.ndarray, theta: float, scaling: RopeScaling) -> np.ndarray:
    """Return the share, 0 to 1, of each frequency that is not divided by the factor."""
    if scaling.type == "linear":
        return np.zeros_like(plain)
    original = scaling.original_max_seq_len
    assert original is not None
    if scaling.type == "llama3":
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        assert low is not None and high is not None
        turns = original * plain / (2 * math.pi)
        return np.clip((turns - low) / (high - low), 0, 1)
    assert scaling.beta_fast is not None and scaling.beta_slow is not None
    # The blend is linear in the index of the pair, between the pairs that make beta_fast and beta_slow turns.
    first, last = (
        len(plain) * math.log(original / (turns * 2 * math.pi)) / math.log(theta)
        for turns in (scaling.beta_fast, scaling.beta_slow)
    )
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * len(plain) - 1)
    if first == last:
        last += 0.001  # a step, not a division by zero
    return 1 - np.clip((np.arange(len(plain)) - first) / (last - first), 0, 1)
