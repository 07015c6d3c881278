"""The small layers: norm, linear (dense or ternary), embedding, rotary position, gated feed-forward."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.initial_weights import initial_std
from jaxlm.common.architecture.parameters import has_bias
from jaxlm.common.architecture.rational import RATIONAL, SHAPES, rational, silu_coefficients
from jaxlm.common.architecture.rotary import rotary_attention_factor, rotary_frequencies
from jaxlm.common.architecture.ternary import quantize_rows
from jaxlm.ops.elementwise import rotate_halves, times_gain
from jaxlm.ops.mixed_linear import MixedGain, MixedWeight, mixed_linear, mixed_norm, mixed_operands
from jaxlm.ops.shapes import Features, Hidden, Outputs, Positions
from jaxlm.ops.ternary_linear import (
    QuantizedFeatures,
    TernaryWeight,
    quantize_features,
    straight_through,
    ternarize_weight,
    ternary_linear,
)

ACTIVATIONS = {
    "silu": nn.silu,
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "relu2": lambda x: jnp.square(nn.relu(x)),
}


class RMSNorm(nn.Module):
    """x / rms(x) * weight, computed in float32 (arXiv 1910.07467)."""

    eps: float

    @nn.compact
    def __call__(self, x: Features) -> Features:
        inserted = self.get_variable("params", "weight")
        if isinstance(inserted, MixedGain):
            return mixed_norm(x, self._normed(x, inserted.weight), inserted)
        return self._normed(x, self.param("weight", nn.initializers.ones, (x.shape[-1],)))

    def _normed(self, x: Features, weight: jax.Array) -> Features:
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        return times_gain(normed, weight).astype(x.dtype)


class Linear(nn.Module):
    """y = x W^T, or x W^T + b with `has_bias`, W `[out, in]`.

    `checkpoint_name` tags the output with the layer's name, so that a remat policy can save it.
    """

    config: ModelConfig
    features: int
    init_std: float
    has_bias: bool = False

    def __call__(self, x: Features) -> Outputs:
        x, weight, bias = self._operands_and_bias(x)
        y = jnp.einsum("...i,oi->...o", x, weight.astype(x.dtype))
        return checkpoint_name(_with_bias(y, bias), self.name or "")

    def operands(self, x: Features) -> tuple[Features, jax.Array]:
        """Return x and W, for `cross_entropy_sum`, which multiplies them in chunks."""
        return self._operands_and_bias(x)[:2]

    @nn.compact
    def _operands_and_bias(self, x: Features) -> tuple[Features, jax.Array, jax.Array | None]:
        weight = self.param("weight", nn.initializers.normal(self.init_std), (self.features, x.shape[-1]))
        return x, weight, _bias(self)


class BitLinear(nn.Module):
    """The ternary linear of BitNet b1.58 (arXiv 2402.17764), W `[out, in]`, optionally with a norm before it.

    Its parameter is a TernaryWeight, a MixedWeight on its way to one, or latent weights that are quantized here, as
    float features are.
    `checkpoint_name` tags the output with the layer's name and the quantized input with that name and "_input", so that
    a remat policy can save them.
    """

    config: ModelConfig
    features: int
    init_std: float
    has_bias: bool = False

    def __call__(self, x: Features | QuantizedFeatures) -> Outputs:
        name = self.name or ""
        x, weight, bias = self._operands_and_bias(x)
        if weight.activation_bits and not isinstance(x, QuantizedFeatures):
            x = quantize_features(x, f"{name}_input")
        y = mixed_linear(x, weight) if isinstance(weight, MixedWeight) else ternary_linear(x, weight, name)
        return checkpoint_name(_with_bias(y, bias), name)

    def operands(self, x: Features | QuantizedFeatures) -> tuple[Features | QuantizedFeatures, TernaryWeight | Any]:
        """Return x after the layer's own norm and W, for `cross_entropy_sum`, which multiplies them in chunks."""
        x, weight, _ = self._operands_and_bias(x)
        if not isinstance(weight, MixedWeight):
            return x, weight
        if weight.activation_bits and not isinstance(x, QuantizedFeatures):
            x = quantize_features(x)
        return mixed_operands(x, weight)

    @nn.compact
    def _operands_and_bias(
        self, x: Features | QuantizedFeatures
    ) -> tuple[Features | QuantizedFeatures, TernaryWeight | MixedWeight, jax.Array | None]:
        if self.config.linear_norm and not isinstance(x, QuantizedFeatures):
            x = RMSNorm(self.config.norm_eps, name="rms_norm")(x)
        in_features = (x.codes if isinstance(x, QuantizedFeatures) else x).shape[-1]
        return x, _ternary_weight(self, (self.features, in_features), self.init_std), _bias(self)


def _bias(module: Linear | BitLinear) -> jax.Array | None:
    """Return the module's `bias` `[out]`, None where it has none."""
    return module.param("bias", nn.initializers.zeros, (module.features,)) if module.has_bias else None


def _with_bias(y: Outputs, bias: jax.Array | None) -> Outputs:
    return y if bias is None else y + jnp.expand_dims(bias.astype(y.dtype), range(y.ndim - 1))


def _ternary_weight(module: nn.Module, shape: tuple[int, int], init_std: float) -> TernaryWeight | MixedWeight:
    """Return the module's `weight`: as it is where it is ternary or mixed already, else quantized here."""
    config: ModelConfig = module.config  # pyright: ignore[reportAttributeAccessIssue]
    weight = module.get_variable("params", "weight")
    if isinstance(weight, TernaryWeight | MixedWeight):
        return weight
    weight = module.param("weight", nn.initializers.normal(init_std), shape)
    return ternarize_weight(weight, config.ternary_form).replace(latent=weight)


def shared_input(config: ModelConfig, x: Features) -> Features | QuantizedFeatures:
    """Return the input of several linears of a block: quantized once for all, unless each has a norm of its own."""
    is_quantized = config.linear == "ternary" and config.activation_bits is not None
    return quantize_features(x) if is_quantized and not config.linear_norm else x


def block_linear(config: ModelConfig, features: int, name: str) -> nn.Module:
    """Return a linear layer of a block, of the kind that the config names."""
    kind = BitLinear if config.linear == "ternary" else Linear
    return kind(config, features, initial_std(config, name), has_bias(config, name), name=name)


class QuantizedRows(flax.struct.PyTreeNode):
    """A table quantized per row. Invariant: dequantized == codes * scale, int8 codes `[V, D]`, scale `[V, 1]`."""

    codes: Any
    scale: Any


class Embedding(nn.Module):
    """The token table `[V, D]`, dequantized where the config quantizes it; gradients pass straight through."""

    config: ModelConfig

    @nn.compact
    def __call__(self) -> jax.Array:
        config = self.config
        shape, std = (config.vocab_size, config.hidden_size), initial_std(config, "embed_tokens")
        if config.embedding == "ternary":
            weight = _ternary_weight(self, shape, std)
            if isinstance(weight, MixedWeight):
                return weight.mixed(jnp.float32)
            table = weight.dequantized(jnp.float32)
            return table if weight.latent is None else straight_through(weight.latent, table)
        weight = self.get_variable("params", "weight")
        if isinstance(weight, QuantizedRows):
            return weight.codes * weight.scale
        latent = self.param("weight", nn.initializers.normal(std), shape)
        if config.embedding == "float":
            return latent
        codes, scale = quantize_rows(latent, jnp)
        return straight_through(latent, codes * scale)


class Rational(nn.Module):
    """The learnable activation (see jaxlm/common/architecture/rational.py). At the start it is SiLU."""

    @nn.compact
    def __call__(self, x: Features) -> Features:
        numerator, denominator = (
            self.param(name, lambda _, name=name: jnp.asarray(silu_coefficients(name))) for name in SHAPES
        )
        return rational(x, numerator, denominator, jnp)


class FeedForward(nn.Module):
    """down(act(gate(x)) * up(x)), with a norm before `down` where the config has sub-norms."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Hidden) -> Hidden:
        config = self.config
        shared = shared_input(config, x)
        if config.fused_gate:
            gate, up = jnp.split(block_linear(config, 2 * config.intermediate_size, "gate_proj")(shared), 2, axis=-1)
        else:
            gate = block_linear(config, config.intermediate_size, "gate_proj")(shared)
            up = block_linear(config, config.intermediate_size, "up_proj")(shared)
        activation = Rational(name=RATIONAL) if config.activation == RATIONAL else ACTIVATIONS[config.activation]
        # In float32, and rounded once: in bfloat16 XLA for CPUs rounds after each operation, which is less exact and
        # slower. A step of `ternary-tiny` takes 0.97 of the time so (AMD EPYC, 2 cores, 2026-11-30).
        inner = (activation(gate.astype(jnp.float32)) * up).astype(gate.dtype)
        if config.sub_norm:
            inner = RMSNorm(config.norm_eps, name="ffn_sub_norm")(inner)
        return block_linear(config, config.hidden_size, "down_proj")(inner)


def rotary(x: Features, positions: Positions, config: ModelConfig) -> jax.Array:
    """Rotate x `[B, L, heads, H]` by position, split-half as Hugging Face does (arXiv 2104.09864).

    Pair i of a head, (x_i, x_{i + H/2}), turns by the angle position * frequency i (see `rotary_frequencies`).
    """
    frequencies = rotary_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
    angles = positions[:, :, None, None].astype(jnp.float32) * np.float32(frequencies).reshape(1, 1, 1, -1)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if (factor := rotary_attention_factor(config.rope_scaling)) != 1:
        cos, sin = cos * factor, sin * factor
    return rotate_halves(x, cos, sin)
