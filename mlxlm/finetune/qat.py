"""Quantization-aware training: layers whose parameters are latent weights, ternarised in every forward pass.

The numbers are those of jaxlm/ops/ternary_linear.py, and gradients pass straight through.
"""

import functools
from collections.abc import Callable
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.parameters import parameters
from jaxlm.common.architecture.ternary import (
    TernaryForm,
    dequantize,
    quantize_activation,
    quantize_rows,
    quantize_weight,
    spread,
)
from jaxlm.common.artifact.artifact import Artifact
from mlxlm.model.language_model import LanguageModel
from mlxlm.model.layers import BitLinear


@functools.cache
def latent_ternary_linear(form: TernaryForm) -> Callable[[mx.array, mx.array], mx.array]:
    """Return y = x~ W~^T of x `[..., in]` and latent weights `[out, in]`, as the packed layer of a form computes it.

    Gradients are straight-through: dW = dy^T x~ and dx = dy W~.
    """

    def features(x: mx.array) -> tuple[mx.array, mx.array | float]:
        """Return what the weights multiply, and its scale."""
        return quantize_activation(x, mx) if form.activation_bits else (x.astype(mx.float32), 1.0)

    def forward(x: mx.array, weight: mx.array) -> mx.array:
        codes, weight_scale = quantize_weight(weight, form, mx)
        quantized, scale = features(x)
        if form.is_by_group:
            y = (quantized @ dequantize(codes, weight_scale, mx).T) / scale
        else:
            y = (quantized @ codes.astype(mx.float32).T) * (spread(weight_scale, codes.shape, mx)[:, 0] / scale)
        return y.astype(x.dtype)

    def backward(primals: tuple[mx.array, ...], dy: mx.array, _: mx.array) -> tuple[mx.array, ...]:
        x, weight = primals
        codes, weight_scale = quantize_weight(weight, form, mx)
        quantized, scale = features(x)
        dy = dy.astype(mx.float32)
        dx = dy @ dequantize(codes, weight_scale, mx)
        rows = (dy / scale).reshape(-1, dy.shape[-1])
        dweight = rows.T @ quantized.reshape(-1, quantized.shape[-1])
        return dx.astype(x.dtype), dweight.astype(weight.dtype)

    linear = mx.custom_function(forward)
    linear.vjp(backward)
    return cast(Callable[[mx.array, mx.array], mx.array], linear)


@mx.custom_function
def straight_through(latent: mx.array, quantized: mx.array) -> mx.array:
    """Return `quantized`, whose gradient flows to `latent` unchanged (straight-through)."""
    return quantized


@straight_through.vjp
def _straight_through_backward(primals: Any, dy: mx.array, _: mx.array) -> tuple[mx.array, mx.array]:
    return dy, mx.zeros_like(dy)


class LatentBitLinear(nn.Module):
    """A BitLinear in training: `weight` is latent, `[out, in]`."""

    def __init__(self, config: ModelConfig, in_features: int, out_features: int, has_bias: bool = False):
        super().__init__()
        self._linear = latent_ternary_linear(config.ternary_form)
        self.weight = mx.zeros((out_features, in_features))
        if config.linear_norm:
            self.rms_norm = nn.RMSNorm(in_features, config.norm_eps)
        if has_bias:
            self.bias = mx.zeros((out_features,))

    def __call__(self, x: mx.array) -> mx.array:
        return self.with_bias(self._linear(self.rms_norm(x) if "rms_norm" in self else x, self.weight))

    def with_bias(self, y: mx.array) -> mx.array:
        """Return an output of the weights plus the bias, if the layer has one."""
        return y + self.bias.astype(y.dtype) if "bias" in self else y


class LatentEmbedding(nn.Module):
    """A quantized embedding in training: `weight` is latent, `[V, D]`."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self._config = config
        self.weight = mx.zeros((config.vocab_size, config.hidden_size))

    def __call__(self, token_ids: mx.array) -> mx.array:
        return self._table()[token_ids]

    def attend(self, x: mx.array) -> mx.array:
        """Return the logits of the tied head."""
        return x @ self._table().T

    def _table(self) -> mx.array:
        latent = mx.stop_gradient(self.weight)
        if self._config.embedding == "int8":
            codes, scale = quantize_rows(latent, mx)
        else:
            codes, scale = quantize_weight(latent, self._config.ternary_form, mx)
        return cast(mx.array, straight_through(self.weight, dequantize(codes, scale, mx)))


def latent_model(artifact: Artifact, linear: type[LatentBitLinear] = LatentBitLinear) -> LanguageModel:
    """Return a model to train, whose parameters are the latent weights of an artifact, by the paths of the table.

    `linear` is what its ternary linears are made of. Raises ValueError where the artifact is packed and has none.
    """
    config = artifact.config
    if artifact.kind == "packed":
        raise ValueError(
            "method qat: found a packed model, which holds no latent weights; name the latent artifact that it was "
            "packed from (a run's checkpoint gives one: scripts/convert.py RUN DST --to latent), or train with method "
            "lora"
        )
    model = LanguageModel(config)
    latent: list[tuple[str, nn.Module]] = []
    for path, module in model.named_modules():
        if isinstance(module, BitLinear):
            latent.append((path, linear(config, module.in_features, module.weight.shape[0], "bias" in module)))
    if config.embedding != "float":
        latent.append(("embed_tokens", LatentEmbedding(config)))
    model.update_modules(cast(dict[str, Any], tree_unflatten(latent)))
    table = parameters(config)
    model.load_weights([(parameter.attribute, mx.array(artifact.tensors[parameter.name])) for parameter in table])
    mx.eval(model.parameters())
    return model


def ternary_paths(config: ModelConfig) -> list[str]:
    """Return the paths of the latent weights that are ternarised."""
    return [parameter.attribute for parameter in parameters(config) if parameter.storage == "ternary"]
