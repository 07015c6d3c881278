"""Ternary codes and scales <-> the blocks of a GGUF: TQ1_0, TQ2_0 and Q2_0.

Every block of a row has a scale in float16. Where a matrix has fewer scales, blocks repeat them.
"""

import math

import numpy as np
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize, quantize

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.parameters import Parameter, parameter_count, parameters
from jaxlm.common.architecture.presets import PRESETS
from jaxlm.common.architecture.ternary import spread
from jaxlm.common.gguf.q2_0 import pack_q2_0, unpack_q2_0
from jaxlm.common.gguf.types import Q2_0_NUMBER, TensorType


def check_block_size(config: ModelConfig, kind: TensorType) -> None:
    """Raise ValueError where a ternary matrix does not divide into blocks of one scale. It names what fits."""
    if not any(parameter.storage == "ternary" for parameter in parameters(config)):
        return
    per, _, number = config.scale_per.partition(":")
    if per == "group" and int(number) % kind.block:
        raise ValueError(
            f"scale_per: found {config.scale_per}, expected groups of a multiple of {kind.block} columns, the block of "
            f"{kind.name}; write the model as packed, mlx or dequantized"
            + (", or with --ternary_type Q2_0" if int(number) % 64 == 0 else "")
        )
    for parameter in parameters(config):
        if not _divides_into_blocks(parameter, kind):
            nearest = _nearest_preset(config, kind)
            raise ValueError(
                f"{parameter.name}: found {parameter.shape[1]} inputs, expected a multiple of {kind.block}, the "
                f"block of {kind.name}" + (f"; the nearest preset that fits is {nearest}" if nearest else "")
            )


def _divides_into_blocks(parameter: Parameter, kind: TensorType) -> bool:
    return parameter.storage != "ternary" or parameter.shape[1] % kind.block == 0


def _nearest_preset(config: ModelConfig, kind: TensorType) -> str | None:
    """Return the ternary preset of the same architecture, nearest in size, whose rows all divide into blocks."""
    fitting = {
        name: parameter_count(preset)
        for name, preset in PRESETS.items()
        if (preset.linear, preset.sub_norm, preset.num_mlgru_layers) == ("ternary", config.sub_norm, 0)
        and all(_divides_into_blocks(parameter, kind) for parameter in parameters(preset))
    }
    size = parameter_count(config)
    return min(fitting, key=lambda name: abs(math.log(fitting[name] / size)), default=None)


def block_scales(scales: np.ndarray, shape: tuple[int, int], kind: TensorType) -> np.ndarray:
    """Return scales `[blocks, groups]` of a matrix as one for each block of each row: `[R, C / block]`."""
    rows, columns = shape
    per_row = spread(scales, (rows, columns // kind.block), np)
    return np.broadcast_to(per_row, (rows, columns // kind.block))


def to_ternary_blocks(codes: np.ndarray, scales: np.ndarray, kind: TensorType) -> np.ndarray:
    """Return codes `[R, C]` and float16 scales `[R, C / block]` as bytes: uint8 `[R, bytes per row]`."""
    if kind.number == Q2_0_NUMBER:
        return pack_q2_0(codes, scales)
    encoded = quantize(codes.astype(np.float32), GGMLQuantizationType(kind.number))
    # The last two bytes of a block are its scale. The library wrote 1 there, or 0 where all codes are 0.
    _by_block(encoded, kind)[:, -2:] = np.ascontiguousarray(scales, "<f2").reshape(-1, 1).view(np.uint8)
    return encoded


def ternary_codes(encoded: np.ndarray, kind: TensorType) -> np.ndarray:
    """Return the int8 codes `[R, C]` of ternary bytes. Raises ValueError on a code of value 3."""
    if kind.number == Q2_0_NUMBER:
        codes, scales = unpack_q2_0(encoded, kind.block)
        codes.reshape(*scales.shape, kind.block)[scales == 0] = 0
    else:
        encoded = encoded.copy()
        blocks = _by_block(encoded, kind)
        is_zero = _tq_scales(blocks) == 0
        blocks[:, -2:] = np.array([1], "<f2").view(np.uint8)
        codes = dequantize(encoded, GGMLQuantizationType(kind.number)).astype(np.int8)
        codes.reshape(-1, kind.block)[is_zero] = 0
    if codes.max() > 1:
        raise ValueError("found a ternary code of value 3, expected 0, 1 or 2")
    return codes


def ternary_scales(encoded: np.ndarray, kind: TensorType) -> np.ndarray:
    """Return the float32 scales `[R, C / block]` of ternary bytes; 0 where all codes of a block are 0.

    Raises ValueError on a scale that is negative or not finite.
    """
    if kind.number == Q2_0_NUMBER:
        blocks = encoded.reshape(len(encoded), -1, kind.block_bytes)
        scales = blocks[..., :2].copy().view("<f2")[..., 0]
    else:
        scales = _tq_scales(_by_block(encoded, kind)).reshape(len(encoded), -1)
    if not (np.isfinite(scales) & (scales >= 0)).all():
        wrong = scales[~(np.isfinite(scales) & (scales >= 0))][0]
        raise ValueError(f"found a scale of {wrong}, expected a positive number")
    return scales.astype(np.float32)


def _by_block(encoded: np.ndarray, kind: TensorType) -> np.ndarray:
    return encoded.reshape(-1, kind.block_bytes)


def _tq_scales(blocks: np.ndarray) -> np.ndarray:
    return blocks[:, -2:].copy().view("<f2")[:, 0]
