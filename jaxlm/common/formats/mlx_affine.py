"""MLX's affine format: integers of a few bits, with a scale and a bias for each group of a row's columns.

A weight is `scale * q + bias`. The bits of a row follow one another from the lowest of its first uint32 word on
(mlx/backend/cpu/quantized.cpp).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
_WORD_BITS = 32
# Numbers dequantized at a time, which bounds the memory beside the result.
_CHUNK = 2**22


@dataclass(frozen=True)
class AffineForm:
    """The quantization of a module."""

    bits: int
    group_size: int

    def words(self, columns: int) -> int:
        """Return the uint32 words of a row."""
        return columns * self.bits // _WORD_BITS

    def columns(self, words: int) -> int:
        """Return the columns of a row of so many words."""
        return words * _WORD_BITS // self.bits


def affine_form(quantization: Mapping[str, Any], path: str) -> AffineForm:
    """Return the form of the module at a path from the object `quantization` of a config.json.

    Raises ValueError on an unknown key or value.
    """
    own = quantization.get(path)
    shared = {key: value for key, value in quantization.items() if not isinstance(value, dict | bool)}
    settings = own if isinstance(own, dict) else shared
    if unknown := set(settings) - {"bits", "group_size", "mode"}:
        key = min(unknown)
        raise ValueError(
            f"quantization: unknown key {key!r} with value {settings[key]!r}, expected bits, group_size and mode; use "
            "the model's unpacked floats"
        )
    bits, group_size, mode = settings.get("bits", 4), settings.get("group_size", 64), settings.get("mode", "affine")
    if mode != "affine":
        raise ValueError(
            f"quantization: mode: found {mode!r}, expected 'affine'; write the floats with mlx_lm.convert --dequantize"
        )
    if bits == 1:
        raise ValueError(
            "quantization: bits: found 1, a binary model, expected 2 to 8 bits; its weights have no zeros and are not "
            "ternary"
        )
    if bits not in BITS or group_size not in GROUP_SIZES:
        raise ValueError(
            f"quantization: found bits {bits!r} and group_size {group_size!r}, expected bits of "
            f"{', '.join(map(str, BITS))} and a group_size of {', '.join(map(str, GROUP_SIZES))}"
        )
    return AffineForm(bits, group_size)


def dequantize_affine(words: np.ndarray, scales: np.ndarray, biases: np.ndarray, form: AffineForm) -> np.ndarray:
    """Return the float32 weights `[R, C]` of words `[R, W]`, and scales and biases `[R, C / group_size]`."""
    rows, columns = len(words), form.columns(words.shape[1])
    found = np.empty((rows, columns), np.float32)
    step = max(1, _CHUNK // columns)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        levels = _levels(words[part], form.bits).reshape(-1, scales.shape[1], form.group_size)
        weights = levels * scales[part, :, None] + biases[part, :, None]
        found[part] = weights.reshape(-1, columns)
    return found


def _levels(words: np.ndarray, bits: int) -> np.ndarray:
    """Return the integers in words `[R, W]`: uint8 `[R, C]`."""
    single = np.unpackbits(np.ascontiguousarray(words, "<u4").view(np.uint8), axis=1, bitorder="little")
    return np.packbits(single.reshape(len(words), -1, bits), axis=2, bitorder="little")[..., 0]
