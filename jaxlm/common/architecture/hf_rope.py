"""RopeScaling <-> the object `rope_scaling` (transformers 4, mlx-lm) or `rope_parameters` (transformers 5) of a
config.json."""

import math
from collections.abc import Mapping
from typing import Any

from jaxlm.common.architecture.rotary import RopeScaling, rope_scaling_from_dict

# RopeScaling field -> key of the object.
_KEYS = {
    "factor": "factor",
    "original_max_seq_len": "original_max_position_embeddings",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "beta_slow": "beta_slow",
    "beta_fast": "beta_fast",
    "attention_factor": "attention_factor",
    "truncate": "truncate",
    "factors": "short_factor",
}
# Of texts beyond the original length, which our models do not read.
_LONG = "long_factor"
_ORIGINAL = "original_max_position_embeddings"
_TYPE_KEYS = ("rope_type", "type")
_SHARED_KEYS = (*_TYPE_KEYS, "rope_theta", "partial_rotary_factor")
# Keys of each type next to the shared ones.
_TYPES: dict[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "llama3": ("factor", _ORIGINAL, "low_freq_factor", "high_freq_factor"),
    "yarn": (
        "factor",
        _ORIGINAL,
        "beta_slow",
        "beta_fast",
        "attention_factor",
        "truncate",
        "mscale",
        "mscale_all_dim",
    ),
    "longrope": (_ORIGINAL, "short_factor", _LONG),
}


def to_hf_rope(scaling: RopeScaling) -> dict[str, Any]:
    """Return the object of a config.json, without keys of YaRN at their defaults that mlx-lm does not know."""
    found: dict[str, Any] = {"rope_type": scaling.type}
    for field, key in _KEYS.items():
        value = getattr(scaling, field)
        is_usual = (field, value) in (("truncate", True), ("attention_factor", scaling.usual_attention_factor))
        if value is not None and not is_usual:
            found[key] = value
    if scaling.factors is not None:
        del found["factor"]
        found |= {"short_factor": list(scaling.factors), _LONG: list(scaling.factors)}
    return found


def from_hf_rope(content: Mapping[str, Any], max_seq_len: int) -> tuple[float | None, RopeScaling | None]:
    """Return the base and the scaling of the frequencies, None where the object does not name them.

    `content` is the whole config.json, `max_seq_len` its longest sequence. A missing key has the default of
    transformers. Raises ValueError naming a type or a key that our model cannot compute.
    """
    name = "rope_scaling" if content.get("rope_scaling") else "rope_parameters"
    rope = content.get(name) or {}
    if not isinstance(rope, Mapping):
        raise ValueError(f"config.json: {name}: found {rope!r}, expected an object")
    kind = next((rope[key] for key in _TYPE_KEYS if rope.get(key) is not None), "default")
    if not isinstance(kind, str) or (kind != "default" and kind not in _TYPES):
        raise ValueError(f"config.json: {name} rope_type: found {kind!r}, expected default, {', '.join(_TYPES)}")
    known = (*_SHARED_KEYS, *_TYPES.get(kind, ()))
    if unknown := [key for key in sorted(rope) if key not in known]:
        raise ValueError(f"config.json: {name}: unknown key {unknown[0]!r} with rope_type {kind!r}")
    if rope.get("partial_rotary_factor") not in (None, 1.0):
        raise ValueError(
            f"config.json: {name} partial_rotary_factor: found {rope['partial_rotary_factor']!r}, expected 1.0"
        )
    theta = rope.get("rope_theta")
    if kind == "default":
        return theta, None
    for key in ("mscale", "mscale_all_dim", "factor", _ORIGINAL):
        _check_number(f"{name} {key}", rope.get(key))
    _check_number(_ORIGINAL, content.get(_ORIGINAL))
    fields: dict[str, Any] = {"type": kind} | {field: rope.get(key) for field, key in _KEYS.items()}
    if _ORIGINAL in _TYPES[kind]:
        original = content.get(_ORIGINAL) or fields["original_max_seq_len"] or max_seq_len
        fields["original_max_seq_len"] = original
        if kind == "yarn" and fields["factor"] is None:
            fields["factor"] = max_seq_len / original
        if kind == "longrope" and max_seq_len != original:
            raise ValueError(
                f"config.json: max_position_embeddings: found {max_seq_len}, expected {original}, "
                f"{_ORIGINAL} of longrope, whose frequencies change with the length of a text beyond it"
            )
    factor, mscale, mscale_all_dim = fields["factor"], rope.get("mscale"), rope.get("mscale_all_dim")
    if fields["attention_factor"] is None and factor and mscale and mscale_all_dim:
        fields["attention_factor"] = _grown(factor, mscale) / _grown(factor, mscale_all_dim)
    try:
        return theta, rope_scaling_from_dict(fields)
    except ValueError as error:
        raise ValueError(f"config.json: {error}".replace("rope_scaling", name, 1)) from error


def _check_number(where: str, value: Any) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and not (is_number and value > 0):
        raise ValueError(f"config.json: {where}: found {value!r}, expected a number above 0")


def _grown(factor: float, mscale: float) -> float:
    """Return YaRN's growth of the attention scores' factor, as DeepSeek's models weight it."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0
