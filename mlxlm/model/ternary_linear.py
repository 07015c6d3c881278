"""The ternary linear as one operation (see jaxlm/ops/ternary_linear.py), over MLX's affine 2-bit format, q = code + 1.

`mx.quantized_matmul` computes it on Metal, CUDA and CPU. With scale 1 and bias -1 its sums are sums of integers, exact
in float32; the weight's own scale is applied after them, as in training. Never call `mx.quantize` on ternary floats: it
halves every -1.
"""

import functools
from typing import cast

import mlx.core as mx

from jaxlm.common.architecture.ternary import CODES_PER_WORD, affine_group_size, quantize_activation
from mlxlm.model.shapes import Features, Outputs, PackedWeight, WeightScale


def ternary_linear(x: Features, weight: PackedWeight, weight_scale: WeightScale) -> Outputs:
    """Return y = (q . codes) * (g / s) `[..., out]` of x `[..., in]` (BitNet b1.58, arXiv 2402.17764).

    q and s are the int8 codes of x and their scale, per token. `weight` `[out, words]` holds the codes as `pack_affine`
    packs them, and g `[1]` is their scale. The gradient is straight-through, as if y = x~ W~^T of the dequantized
    values: dx = dy W~. The weight has none.
    """
    return cast(mx.array, _ternary_linear(x, weight, weight_scale))


def _forward(x: Features, weight: PackedWeight, weight_scale: WeightScale) -> Outputs:
    quantized, scale = quantize_activation(x, mx)
    return (integer_product(quantized, weight) * (weight_scale / scale)).astype(x.dtype)


def _backward(
    primals: tuple[Features, PackedWeight, WeightScale], dy: Outputs, _: mx.array
) -> tuple[Features, PackedWeight, WeightScale]:
    x, weight, weight_scale = primals
    dx = _code_product(dy.astype(mx.float32), weight, transpose=False)[..., : x.shape[-1]] * weight_scale
    return dx.astype(x.dtype), mx.zeros_like(weight), mx.zeros_like(weight_scale)


_ternary_linear = mx.custom_function(_forward)
_ternary_linear.vjp(_backward)


def integer_product(quantized: Features, weight: PackedWeight) -> Outputs:
    """Return q . codes `[..., out]` of integer-valued float32 q `[..., in]`: integers, exact below 2^24."""
    if padding := weight.shape[-1] * CODES_PER_WORD - quantized.shape[-1]:
        quantized = mx.concatenate([quantized, mx.zeros((*quantized.shape[:-1], padding))], axis=-1)
    return _code_product(quantized, weight, transpose=True)


def _code_product(x: mx.array, weight: PackedWeight, *, transpose: bool) -> mx.array:
    """Return x W^T `[..., out]` of x `[..., in]`, or x W `[..., in]` of x `[..., out]`, for W = codes `[out, in]`."""
    rows, columns = weight.shape[0], weight.shape[1] * CODES_PER_WORD
    group_size = affine_group_size(columns)
    scales, biases = _unit_scales(rows, columns // group_size)
    return mx.quantized_matmul(x, weight, scales, biases, transpose=transpose, group_size=group_size, bits=2)


@functools.cache
def _unit_scales(rows: int, groups: int) -> tuple[mx.array, mx.array]:
    """Return scales 1 and biases -1, both `[rows, groups]`, which all layers of this shape share."""
    return mx.ones((rows, groups)), -mx.ones((rows, groups))
