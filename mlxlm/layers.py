"""The small layers, as in jaxlm/layers.py: norm, linear (dense or ternary), embedding, gated feed-forward.

Ternary weights live in MLX's affine 2-bit format (q = code + 1), so `mx.quantized_matmul` serves them on
Metal, CUDA and CPU. Scale 1 and bias -1 make its sums sums of integers, exact in float32; the weight's own
scale is applied after them, as in training. Never `mx.quantize` ternary floats: it halves every -1.
"""

from functools import cache

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from jaxlm.spec.config import ModelConfig
from jaxlm.spec.ternary import quantize_activation

BITS = 2
CODES_PER_WORD = 32 // BITS
GROUP_SIZES = (128, 64, 32)


def relu2(x: mx.array) -> mx.array:
    """Squared ReLU."""
    return mx.square(nn.relu(x))


ACTIVATIONS = {"silu": nn.silu, "gelu": nn.gelu, "relu2": relu2}


class BitLinear(nn.Module):
    """The ternary linear of BitNet b1.58 over packed codes, optionally with a norm before it.

    Invariant: dequantized == codes * weight_scale. `weight` `[out, in_padded / 16]` uint32 holds code + 1 in 2
    bits, the first of 16 in the lowest; columns past `in` hold code 0.
    """

    def __init__(self, config: ModelConfig, in_features: int, out_features: int):
        super().__init__()
        self._in_features = in_features
        self._group_size = next((size for size in GROUP_SIZES if in_features % size == 0), GROUP_SIZES[-1])
        self._padding = -in_features % self._group_size
        self.weight = mx.zeros((out_features, (in_features + self._padding) // CODES_PER_WORD), mx.uint32)
        self.weight_scale = mx.ones((1,), mx.float32)
        if config.linear_norm:
            self.rms_norm = nn.RMSNorm(in_features, config.norm_eps)

    def __call__(self, x: mx.array) -> mx.array:
        if "rms_norm" in self:
            x = self.rms_norm(x)
        quantized, scale = quantize_activation(x, mx)
        return (self.integer_product(quantized) * (self.weight_scale / scale)).astype(x.dtype)

    def integer_product(self, quantized: mx.array) -> mx.array:
        """q . codes for integer-valued float32 q `[..., in]`: integers `[..., out]`, exact below 2^24."""
        if self._padding:
            quantized = mx.concatenate([quantized, mx.zeros((*quantized.shape[:-1], self._padding))], axis=-1)
        scales, biases = _unit_scales(self.weight.shape[0], quantized.shape[-1] // self._group_size)
        return mx.quantized_matmul(
            quantized, self.weight, scales, biases, transpose=True, group_size=self._group_size, bits=BITS
        )

    def set_codes(self, codes: np.ndarray, weight_scale: float) -> None:
        """Take codes `[out, in]` in {-1, 0, 1} and their scale."""
        self.weight = mx.array(pack_affine(np.pad(codes, ((0, 0), (0, self._padding)))))
        self.weight_scale = mx.array([weight_scale], mx.float32)

    def codes(self) -> np.ndarray:
        """The codes `[out, in]`, int8."""
        return unpack_affine(np.array(self.weight))[:, : self._in_features]


@cache
def _unit_scales(rows: int, groups: int) -> tuple[mx.array, mx.array]:
    """Scales 1 and biases -1 for a matrix of this shape, shared by all layers that have it."""
    return mx.ones((rows, groups)), -mx.ones((rows, groups))


def pack_affine(codes: np.ndarray) -> np.ndarray:
    """Pack codes `[out, in]` into MLX's 2-bit words, uint32 `[out, in / 16]`."""
    words = (codes + 1).astype(np.uint32).reshape(codes.shape[0], -1, CODES_PER_WORD)
    return np.bitwise_or.reduce(words << np.arange(0, 32, BITS, dtype=np.uint32), axis=-1)


def unpack_affine(words: np.ndarray) -> np.ndarray:
    """Undo `pack_affine`: int8 codes `[out, in]`."""
    parts = (words[..., None] >> np.arange(0, 32, BITS, dtype=np.uint32)) & 3
    return parts.reshape(words.shape[0], -1).astype(np.int8) - np.int8(1)


def block_linear(config: ModelConfig, in_features: int, out_features: int) -> nn.Module:
    """A linear layer of a block, of the kind the config asks for."""
    if config.linear == "ternary":
        return BitLinear(config, in_features, out_features)
    return nn.Linear(in_features, out_features, bias=False)


class Embedding(nn.Module):
    """The token table `[V, D]`, float or quantized, and its use as the tied head."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        shape = (config.vocab_size, config.hidden_size)
        if config.embedding == "float":
            self.weight = mx.zeros(shape)
        else:
            # Dequantized == codes * scale: one scale a row, or one for a ternary table.
            self.codes = mx.zeros(shape, mx.int8)
            self.scale = mx.ones((shape[0] if config.embedding == "int8" else 1, 1))

    def __call__(self, token_ids: mx.array) -> mx.array:
        if "weight" in self:
            return self.weight[token_ids]
        scale = self.scale[token_ids] if self.scale.shape[0] > 1 else self.scale[0]
        return self.codes[token_ids] * scale

    def attend(self, x: mx.array) -> mx.array:
        """Logits of the tied head."""
        if "weight" in self:
            return x @ self.weight.T
        return (x @ self.codes.astype(x.dtype).T) * self.scale.T


class FeedForward(nn.Module):
    """down(act(gate(x)) * up(x)), with a norm before `down` where the config has sub-norms."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self._activation = ACTIVATIONS[config.activation]
        self.gate_proj = block_linear(config, config.hidden_size, (1 + config.fused_gate) * config.intermediate_size)
        if not config.fused_gate:
            self.up_proj = block_linear(config, config.hidden_size, config.intermediate_size)
        self.down_proj = block_linear(config, config.intermediate_size, config.hidden_size)
        if config.sub_norm:
            self.ffn_sub_norm = nn.RMSNorm(config.intermediate_size, config.norm_eps)

    def __call__(self, x: mx.array) -> mx.array:
        gate, up = (
            (self.gate_proj(x), self.up_proj(x)) if "up_proj" in self else mx.split(self.gate_proj(x), 2, axis=-1)
        )
        inner = self._activation(gate) * up
        if "ffn_sub_norm" in self:
            inner = self.ffn_sub_norm(inner)
        return self.down_proj(inner)
