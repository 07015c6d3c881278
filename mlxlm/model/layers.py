"""The small layers, as in jaxlm/model/layers.py: norm, linear (dense or ternary), embedding, gated feed-forward."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.packing import affine_words, pack_affine
from jaxlm.common.architecture.rational import RATIONAL, SHAPES, rational, silu_coefficients
from jaxlm.common.architecture.ternary import quantize_rows, quantize_weight, spread
from mlxlm.model.lora import LoRABitLinear
from mlxlm.model.shapes import Features, HeadInputs, HeadOutputs, Hidden, LatentWeight, Outputs, Tokens
from mlxlm.model.ternary_linear import dequantized_rows, ternary_linear


def relu2(x: mx.array) -> mx.array:
    """Return relu(x)^2, elementwise."""
    return mx.square(nn.relu(x))


ACTIVATIONS = {"silu": nn.silu, "gelu": nn.gelu, "relu2": relu2}


class BitLinear(nn.Module):
    """The ternary linear of BitNet b1.58 (arXiv 2402.17764) over packed codes, optionally with a norm before it.

    Invariant: dequantized == codes * scales. `weight` `[out, words]` holds the codes as `pack_affine` packs them, and
    `weight_scale` is `[1]` or `[blocks, groups]` (see `TernaryForm.grid`).
    """

    def __init__(self, config: ModelConfig, in_features: int, out_features: int, has_bias: bool = False):
        super().__init__()
        self.in_features = in_features
        self._config = config
        self.weight = mx.zeros((out_features, affine_words(in_features)), mx.uint32)
        self.weight_scale = mx.ones(config.ternary_form.stored_shape(out_features, in_features), mx.float32)
        if config.linear_norm:
            self.rms_norm = nn.RMSNorm(in_features, config.norm_eps)
        if has_bias:
            self.bias = mx.zeros((out_features,))

    def __call__(self, x: Features) -> Outputs:
        return self.product(self.normed(x))

    def product(self, x: Features) -> Outputs:
        """Return the layer's output for features after its own norm."""
        y = ternary_linear(x, self.weight, self.weight_scale, self._config.activation_bits)
        return y + self.bias.astype(y.dtype) if "bias" in self else y

    def normed(self, x: Features) -> Features:
        """Return x after the layer's own norm, or x itself if it has none: the features that the weight multiplies."""
        return self.rms_norm(x) if "rms_norm" in self else x

    def from_latent(self, weight: LatentWeight) -> dict[str, mx.array]:
        """Return this layer's parameters for latent weights `[out, in]`, ternarised as in training."""
        codes, scale = quantize_weight(to_numpy(weight), self._config.ternary_form, np)
        scale = scale.reshape(self.weight_scale.shape)
        return {"weight": mx.array(pack_affine(codes)), "weight_scale": mx.array(scale)}

    def to_lora(self, r: int, scale: float, dropout: float) -> LoRABitLinear:
        """Return this layer with an adapter of rank r; mlx-lm's LoRA calls it."""
        return LoRABitLinear(self, r, scale, dropout)


def to_numpy(x: mx.array) -> np.ndarray:
    """Convert to float32 and to numpy, which has no bfloat16."""
    return np.array(x.astype(mx.float32))


def block_linear(config: ModelConfig, in_features: int, out_features: int, has_bias: bool = False) -> nn.Module:
    """Return a linear layer of a block, of the kind that the config asks for."""
    if config.linear == "ternary":
        return BitLinear(config, in_features, out_features, has_bias)
    return nn.Linear(in_features, out_features, bias=has_bias)


class Embedding(nn.Module):
    """The token table `[V, D]`, float or quantized, which also serves as the tied head.

    Invariant of a quantized one: dequantized == codes * scales. The scales of an int8 table are `[V, 1]`. A ternary
    table with scales by group is packed as the weight of a BitLinear is; any other holds its codes in int8.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self._config = config
        shape = (config.vocab_size, config.hidden_size)
        if config.embedding == "float":
            self.weight = mx.zeros(shape)
        elif config.embedding == "ternary" and config.ternary_form.is_by_group:
            self.weight = mx.zeros((shape[0], affine_words(shape[1])), mx.uint32)
            self.weight_scale = mx.ones(config.ternary_form.stored_shape(*shape))
        else:
            self.codes = mx.zeros(shape, mx.int8)
            self.scale = mx.ones((shape[0], 1) if config.embedding == "int8" else config.ternary_form.grid(*shape))

    def __call__(self, token_ids: Tokens) -> Hidden:
        if "weight_scale" in self:
            return dequantized_rows(self.weight[token_ids], self.weight_scale[token_ids])
        if "weight" in self:
            return self.weight[token_ids]
        scale = spread(self.scale, self.codes.shape, mx)
        return self.codes[token_ids] * (scale[token_ids] if len(scale) > 1 else scale[0])

    def attend(self, x: HeadInputs) -> HeadOutputs:
        """Return the logits `[..., V]` of the tied head."""
        if "weight_scale" in self:
            return ternary_linear(x, self.weight, self.weight_scale, None)
        if "weight" in self:
            return x @ self.weight.T
        return (x @ self.codes.astype(x.dtype).T) * spread(self.scale, self.codes.shape, mx).T

    def from_latent(self, weight: LatentWeight) -> dict[str, mx.array]:
        """Return this layer's parameters for a latent table `[V, D]`, quantized as in training."""
        if self._config.embedding == "float":
            return {"weight": weight}
        if self._config.embedding == "int8":
            codes, scale = quantize_rows(to_numpy(weight), np)
        else:
            codes, scale = quantize_weight(to_numpy(weight), self._config.ternary_form, np)
            if "weight_scale" in self:
                return {"weight": mx.array(pack_affine(codes)), "weight_scale": mx.array(scale)}
        return {"codes": mx.array(codes), "scale": mx.array(scale)}


class Rational(nn.Module):
    """The learnable activation (see jaxlm/common/architecture/rational.py)."""

    def __init__(self):
        super().__init__()
        self.numerator, self.denominator = (mx.array(silu_coefficients(name)) for name in SHAPES)

    def __call__(self, x: Features) -> Features:
        return rational(x, self.numerator.astype(mx.float32), self.denominator.astype(mx.float32), mx)


class FeedForward(nn.Module):
    """down(act(gate(x)) * up(x)), with a norm before `down` if the config has sub-norms (arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        if config.activation == RATIONAL:
            self.rational = Rational()
        else:
            self._activation = ACTIVATIONS[config.activation]
        self.gate_proj = block_linear(config, config.hidden_size, (1 + config.fused_gate) * config.intermediate_size)
        if not config.fused_gate:
            self.up_proj = block_linear(config, config.hidden_size, config.intermediate_size)
        self.down_proj = block_linear(config, config.intermediate_size, config.hidden_size)
        if config.sub_norm:
            self.ffn_sub_norm = nn.RMSNorm(config.intermediate_size, config.norm_eps)

    def __call__(self, x: Hidden) -> Hidden:
        if "up_proj" in self:
            gate, up = self.gate_proj(x), self.up_proj(x)
        else:
            gate, up = mx.split(self.gate_proj(x), 2, axis=-1)
        inner = (self.rational if "rational" in self else self._activation)(gate) * up
        if "ffn_sub_norm" in self:
            inner = self.ffn_sub_norm(inner)
        return self.down_proj(inner)
