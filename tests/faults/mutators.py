"""Ways to damage the bytes of a file, from one bit to another structure."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np

_NUMBERS = (b"-1", b"0", b"1e999", b"99999999999999999999", b"-9223372036854775809", b"4294967296", b"NaN", b"0.5")
_WORDS = (
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"\\ud800",
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"\n",
    b"\r",
    b"null",
    b"&a [*a]",
    b"!!python/object:os.system",
)
_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    10**30,
    0.5,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "a",
    "é\ud800",
    "../../../etc/passwd",
    "a" * 5000,
    [],
    [[]],
    [None],
    {},
    {"": None},
    {"a": {"b": 1}},
)


def mutate(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Return a damaged copy; `other` is another file to take pieces from."""
    for _ in range(int(rng.choice([1, 1, 1, 2, 4]))):
        content = _MUTATORS[int(rng.integers(len(_MUTATORS)))](content, other, rng)
    return content


def _flip(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    damaged = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        if damaged:
            damaged[int(rng.integers(len(damaged)))] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def _set_bytes(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Set one to eight bytes to the ends of their range: sizes and offsets of binary formats become huge."""
    damaged, size = bytearray(content), int(rng.choice([1, 2, 4, 8]))
    if len(damaged) > size:
        at = int(rng.integers(min(len(damaged) - size, 512 if rng.integers(2) else len(damaged))))
        at = min(at, len(damaged) - size)
        damaged[at : at + size] = [b"\xff", b"\x00", b"\x7f", b"\x80"][int(rng.integers(4))] * size
    return bytes(damaged)


def _cut(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    at = int(rng.integers(len(content) + 1))
    return content[at:] if rng.integers(4) == 0 else content[:at]


def _drop(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    start, stop = _piece(content, rng)
    return content[:start] + content[stop:]


def _repeat(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    start, stop = _piece(content, rng)
    return content[:stop] + content[start:stop] * int(rng.choice([1, 2, 50])) + content[stop:]


def _splice(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    start, stop = _piece(other, rng)
    at = int(rng.integers(len(content) + 1))
    return content[:at] + other[start:stop] + content[at + (stop - start) * int(rng.integers(2)) :]


def _insert_word(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    at = int(rng.integers(len(content) + 1))
    return content[:at] + _WORDS[int(rng.integers(len(_WORDS)))] + content[at:]


def _change_number(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Replace a number in a text by another one."""
    digits = [at for at in range(len(content)) if 48 <= content[at] <= 57][:2000]
    if not digits:
        return _flip(content, other, rng)
    start = stop = digits[int(rng.integers(len(digits)))]
    while stop < len(content) and content[stop : stop + 1] in b"0123456789.e":
        stop += 1
    return content[:start] + _NUMBERS[int(rng.integers(len(_NUMBERS)))] + content[stop:]


def _nest(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Insert brackets a hundred to a hundred thousand deep."""
    depth = int(rng.choice([101, 1000, 20_000, 100_000], p=[0.5, 0.35, 0.1, 0.05]))
    before, after = [(b"[", b"]"), (b'{"a":', b"}"), (b"[", b""), (b"- ", b"")][int(rng.integers(4))]
    at = int(rng.integers(len(content) + 1))
    return content[:at] + before * depth + b"1" + after * depth + content[at:]


def _change_value(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Replace, remove or copy a value in JSON, or in one line of JSON lines."""
    lines = content.split(b"\n")
    number = int(rng.integers(len(lines)))
    for text, rebuild in (
        (content, lambda new: new),
        (lines[number], lambda new: b"\n".join([*lines[:number], new, *lines[number + 1 :]])),
    ):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            continue
        return rebuild(json.dumps(change_value(value, rng)).encode("utf-8", "surrogatepass"))
    return _change_number(content, other, rng)


def change_value(value: Any, rng: np.random.Generator) -> Any:
    """Return a copy of a JSON value in which one part is another value, or is missing."""
    if not isinstance(value, dict | list) or not value or rng.integers(6) == 0:
        return _VALUES[int(rng.integers(len(_VALUES)))]
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = keys[int(rng.integers(len(keys)))]
    copy = dict(value) if isinstance(value, dict) else list(value)
    kind = rng.integers(8)
    if kind == 0:
        del copy[key]
    elif kind == 1 and isinstance(copy, dict):
        copy[f"{key}2"] = copy.pop(key)
    elif kind == 1 and isinstance(copy, list):
        copy.append(copy[key])
    else:
        copy[key] = change_value(copy[key], rng)
    return copy


def _piece(content: bytes, rng: np.random.Generator) -> tuple[int, int]:
    start = int(rng.integers(len(content) + 1))
    return start, min(len(content), start + int(rng.choice([1, 8, 64, 1024])))


_MUTATORS: tuple[Callable[[bytes, bytes, np.random.Generator], bytes], ...] = (
    _flip,
    _flip,
    _set_bytes,
    _set_bytes,
    _cut,
    _drop,
    _repeat,
    _splice,
    _insert_word,
    _change_number,
    _nest,
    _change_value,
    _change_value,
    _change_value,
)
