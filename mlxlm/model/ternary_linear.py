"""The ternary linear as one operation (see jaxlm/ops/ternary_linear.py), over MLX's affine 2-bit format, q = code + 1.

`mx.quantized_matmul` computes it on Metal, CUDA and CPU. Where the inputs of an output share a scale, its scales are 1
and its biases -1: of integers its sums are exact in float32, and the weight's own scale is applied after them, as in
training. Scales by group are MLX's own, with biases that are their negatives. Never call `mx.quantize` on ternary
floats: it halves every -1.
"""

import functools
from typing import cast

import mlx.core as mx

from jaxlm.common.architecture.packing import CODES_PER_WORD, affine_group_size
from jaxlm.common.architecture.ternary import quantize_activation
from mlxlm.model.shapes import Features, Outputs, PackedWeight, WeightScale


def ternary_linear(
    x: Features, weight: PackedWeight, weight_scale: WeightScale, activation_bits: int | None
) -> Outputs:
    """Return y = x~ W~^T `[..., out]` of x `[..., in]`, with W~ = codes * scales.

    With 8 bits x~ = q / s, of integers q and their scale s per token (BitNet b1.58, arXiv 2402.17764), otherwise x
    itself. `weight` `[out, words]` holds the codes as `pack_affine` packs them; `weight_scale` is `[1]` or `[blocks,
    groups]`. The gradient is straight-through: dx = dy W~. The weight has none.
    """
    product = _int8_linear if activation_bits else _float_linear
    return cast(mx.array, product(x, weight, weight_scale))


def _int8_forward(x: Features, weight: PackedWeight, weight_scale: WeightScale) -> Outputs:
    quantized, scale = quantize_activation(x, mx)
    if is_by_group(weight_scale):
        return (_code_product(quantized, weight, weight_scale) / scale).astype(x.dtype)
    g = _output_scales(weight_scale, len(weight))
    products = integer_product(quantized, weight)
    return (products * (g / scale) if g.size == 1 else products * (1 / scale) * g).astype(x.dtype)


def _float_forward(x: Features, weight: PackedWeight, weight_scale: WeightScale) -> Outputs:
    if is_by_group(weight_scale):
        return _code_product(x, weight, weight_scale)
    products = _code_product(_padded(x, weight), weight)
    return (products.astype(mx.float32) * _output_scales(weight_scale, len(weight))).astype(x.dtype)


def _backward(
    primals: tuple[Features, PackedWeight, WeightScale], dy: Outputs, _: mx.array
) -> tuple[Features, PackedWeight, WeightScale]:
    x, weight, weight_scale = primals
    dy = dy.astype(mx.float32)
    if is_by_group(weight_scale):
        dx = _code_product(dy, weight, weight_scale, transpose=False)
    else:
        dx = _code_product(dy * _output_scales(weight_scale, len(weight)), weight, transpose=False)
    return dx[..., : x.shape[-1]].astype(x.dtype), mx.zeros_like(weight), mx.zeros_like(weight_scale)


_int8_linear = mx.custom_function(_int8_forward)
_float_linear = mx.custom_function(_float_forward)
_int8_linear.vjp(_backward)
_float_linear.vjp(_backward)


def dequantized_rows(weight: mx.array, weight_scale: mx.array) -> mx.array:
    """Return rows codes * scales `[..., in]` of packed rows `[..., words]` with scales by group `[..., groups]`."""
    group_size = weight.shape[-1] * CODES_PER_WORD // weight_scale.shape[-1]
    return mx.dequantize(weight, weight_scale, -weight_scale, group_size=group_size, bits=2)


def is_by_group(weight_scale: WeightScale) -> bool:
    """Return True if the inputs of an output have several scales."""
    return weight_scale.ndim == 2 and weight_scale.shape[1] > 1


def _output_scales(weight_scale: WeightScale, rows: int) -> mx.array:
    """Return the scales `[out]`, or `[1]`, of a weight whose inputs share them."""
    blocks = weight_scale.reshape(-1)
    return blocks if blocks.size in (1, rows) else mx.repeat(blocks, rows // blocks.size)


def integer_product(quantized: Features, weight: PackedWeight) -> Outputs:
    """Return q . codes `[..., out]` of integer-valued float32 q `[..., in]`: integers, exact below 2^24."""
    return _code_product(_padded(quantized, weight), weight)


def _padded(x: mx.array, weight: PackedWeight) -> mx.array:
    if padding := weight.shape[-1] * CODES_PER_WORD - x.shape[-1]:
        return mx.concatenate([x, mx.zeros((*x.shape[:-1], padding), x.dtype)], axis=-1)
    return x


def _code_product(
    x: mx.array, weight: PackedWeight, scales: mx.array | None = None, *, transpose: bool = True
) -> mx.array:
    """Return x W^T `[..., out]` of x `[..., in]`, or x W `[..., in]` of x `[..., out]`, in the precision of x.

    W is the codes `[out, in]`, times scales by group `[out, groups]` where they are given.
    """
    rows, columns = weight.shape[0], weight.shape[1] * CODES_PER_WORD
    if scales is None:
        group_size = affine_group_size(columns)
        scales, biases = _unit_scales(rows, columns // group_size, x.dtype)
    else:
        group_size, scales = columns // scales.shape[1], scales.astype(x.dtype)
        biases = -scales
    return mx.quantized_matmul(x, weight, scales, biases, transpose=transpose, group_size=group_size, bits=2)


@functools.cache
def _unit_scales(rows: int, groups: int, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
    """Return scales 1 and biases -1, both `[rows, groups]`, which all layers of this shape share."""
    return mx.ones((rows, groups), dtype), -mx.ones((rows, groups), dtype)
