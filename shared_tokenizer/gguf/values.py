"""Values of GGUF metadata, read without trusting them: each raises ValueError with key, found and expected."""

from collections.abc import Mapping, Sequence
from typing import Any


def read_list(metadata: Mapping[str, Any], key: str, kind: type) -> list[Any]:
    """An array of which every value is of one type."""
    values = metadata.get(key)
    if not isinstance(values, list):
        raise ValueError(f"{key}: found {shown(values)}, expected an array of {kind.__name__}")
    for i, value in enumerate(values):
        if type(value) is not kind:
            raise ValueError(f"{key}: found {shown(value)} at {i}, expected an array of {kind.__name__}")
    return values


def check_length(key: str, values: Sequence[Any], tokens: Sequence[Any]) -> None:
    """Raises ValueError unless there is a value for every token."""
    if len(values) != len(tokens):
        raise ValueError(f"{key}: found {len(values)} values, expected one for each of the {len(tokens)} tokens")


def read_flag(metadata: Mapping[str, Any], key: str, default: bool) -> bool:
    """A truth value."""
    value = metadata.get(key, default)
    if not isinstance(value, bool):
        raise ValueError(f"{key}: found {shown(value)}, expected a bool")
    return value


def read_id(metadata: Mapping[str, Any], key: str, default: int | None, count: int) -> int | None:
    """The id of one of `count` tokens."""
    value = metadata.get(key, default)
    if value is not None and not (type(value) is int and 0 <= value < count):
        raise ValueError(f"{key}: found {shown(value)}, expected a token's id, 0..{count - 1}")
    return value


def shown(value: Any) -> str:
    """A value as errors show it: never all of a long one."""
    if value is None:
        return "none"
    text = f"an array of {len(value)}" if isinstance(value, list) else repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
