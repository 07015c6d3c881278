"""Checked values of GGUF metadata.

Every reader raises ValueError with the key, the value that was found, and the expected one.
"""

from collections.abc import Mapping, Sequence
from typing import Any


def read_list(metadata: Mapping[str, Any], key: str, kind: type) -> list[Any]:
    """Return an array whose values all have the type `kind`."""
    values = metadata.get(key)
    if not isinstance(values, list):
        raise ValueError(f"{key}: found {shown(values)}, expected an array of {kind.__name__}")
    for i, value in enumerate(values):
        if type(value) is not kind:
            raise ValueError(f"{key}: found {shown(value)} at {i}, expected an array of {kind.__name__}")
    return values


def check_length(key: str, values: Sequence[Any], tokens: Sequence[Any]) -> None:
    """Raise ValueError unless there is one value per token."""
    if len(values) != len(tokens):
        raise ValueError(f"{key}: found {len(values)} values, expected one per token, {len(tokens)}")


def read_flag(metadata: Mapping[str, Any], key: str, default: bool) -> bool:
    """Return a bool, `default` where the key is missing."""
    value = metadata.get(key, default)
    if not isinstance(value, bool):
        raise ValueError(f"{key}: found {shown(value)}, expected a bool")
    return value


def read_id(metadata: Mapping[str, Any], key: str, default: int | None, count: int) -> int | None:
    """Return the id of one of `count` tokens, `default` where the key is missing."""
    value = metadata.get(key, default)
    if value is not None and not (type(value) is int and 0 <= value < count):
        raise ValueError(f"{key}: found {shown(value)}, expected a token's id, 0..{count - 1}")
    return value


def shown(value: Any) -> str:
    """Return a value as text for messages, at most about 100 characters."""
    if value is None:
        return "none"
    text = f"an array of {len(value)}" if isinstance(value, list) else repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
