"""RopeScaling <-> GGUF: keys of the metadata for linear and yarn, a tensor of one factor per frequency for llama3.

llama.cpp divides frequency i by factor i. It computes llama3's scaling in architecture llama alone, and reads YaRN's
bounds in none of ours, so these stay at their defaults.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.rotary import RopeScaling, rotary_frequencies

FACTORS = "rope_freqs.weight"
_TYPE, _FACTOR = "rope.scaling.type", "rope.scaling.factor"
_LEGACY_FACTOR = "rope.scale_linear"
_ORIGINAL = "rope.scaling.original_context_length"
# Keys below the architecture's name that `from_rope_metadata` reads.
ROPE_KEYS = (_TYPE, _FACTOR, _LEGACY_FACTOR, _ORIGINAL)
# Keys of YaRN, with the values that leave it as it is.
NEUTRAL_ROPE: dict[str, tuple[Any, ...]] = {
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_ext_factor": (1.0,),
    "rope.scaling.yarn_beta_fast": (32.0,),
    "rope.scaling.yarn_beta_slow": (1.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
}
# The numbers of Llama 3.1 and 3.2, for factors that leave a choice.
_USUAL = {"original_max_seq_len": 8192, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
# Relative error of factors in float32 that is no difference.
_TOLERANCE = 1e-5


def computes_scaling(scaling: RopeScaling | None, architecture: str) -> bool:
    """Return True if an architecture of llama.cpp computes a scaling."""
    if scaling is None or scaling.type == "linear":
        return True
    if scaling.type != "yarn":
        return scaling.type == "llama3" and architecture == "llama"
    usual = RopeScaling(type="yarn", factor=scaling.factor, original_max_seq_len=scaling.original_max_seq_len)
    return scaling == usual


def to_rope_metadata(scaling: RopeScaling | None) -> dict[str, Any]:
    """Return the keys, below the architecture's name, of a scaling that `computes_scaling`."""
    if scaling is None or scaling.type == "llama3":
        return {}
    found: dict[str, Any] = {_TYPE: scaling.type, _FACTOR: scaling.factor}
    return found if scaling.type == "linear" else found | {_ORIGINAL: scaling.original_max_seq_len}


def from_rope_metadata(own: Mapping[str, Any], max_seq_len: int) -> RopeScaling | None:
    """Return the scaling in the metadata, whose keys are those below the architecture's name.

    As in llama.cpp a missing type is linear. Raises ValueError naming a key that is not as expected.
    """
    kind, factor = own.get(_TYPE, "linear"), own.get(_FACTOR, own.get(_LEGACY_FACTOR, 1.0))
    if kind not in ("none", "linear", "yarn"):
        raise ValueError(f"{_TYPE}: found {kind!r}, expected 'none', 'linear' or 'yarn'")
    if kind == "none" or factor in (0, 1):
        return None
    if isinstance(factor, float):
        factor = float(str(np.float32(factor)))  # the shortest number that is the same in float32
    original = own.get(_ORIGINAL, max_seq_len) if kind == "yarn" else None
    return RopeScaling(type=kind, factor=factor, original_max_seq_len=original)


def rope_factors(config: ModelConfig) -> np.ndarray | None:
    """Return the tensor of llama3's scaling, float32 `[head_dim / 2]`, or None for a model without."""
    scaling = config.rope_scaling
    if scaling is None or scaling.type != "llama3":
        return None
    plain = rotary_frequencies(config.head_dim, config.rope_theta)
    return (plain / rotary_frequencies(config.head_dim, config.rope_theta, scaling)).astype(np.float32)


def from_rope_factors(factors: np.ndarray, head_dim: int, theta: float) -> RopeScaling | None:
    """Return the scaling of a tensor `[head_dim / 2]` of factors, which determine it up to a choice of units.

    The share of a frequency that stays is linear in it, between low_freq_factor, which is taken as 1, and
    high_freq_factor. Raises ValueError where the factors are not those of llama3.
    """
    factors = factors.astype(np.float64)
    factor = float(factors.max())
    if not (np.isfinite(factors).all() and factors.min() >= 1 - _TOLERANCE):
        raise ValueError(f"tensor {FACTORS}: found a factor of {factors.min():.4g}, expected at least 1")
    if factor <= 1 + _TOLERANCE:
        return None
    share = (1 / factors - 1 / factor) / (1 - 1 / factor)
    blended = (share > _TOLERANCE) & (share < 1 - _TOLERANCE)
    candidates: list[dict[str, Any]] = [_USUAL]
    if blended.sum() > 1:
        slope, start = np.polyfit(rotary_frequencies(head_dim, theta)[blended] / (2 * math.pi), share[blended], 1)
        if start < 0 < slope:
            original, high = round(-slope / start), round(1 - 1 / start, 4)
            candidates.append(_USUAL | {"original_max_seq_len": original, "high_freq_factor": high})
    plain = rotary_frequencies(head_dim, theta)
    for candidate in candidates:
        scaling = RopeScaling(type="llama3", factor=factor, **candidate)
        expected = plain / rotary_frequencies(head_dim, theta, scaling)
        if np.allclose(factors, expected, rtol=_TOLERANCE, atol=0):
            return scaling
    raise ValueError(f"tensor {FACTORS}: found factors that are not those of rotary scaling llama3")
