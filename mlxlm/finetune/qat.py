"""Quantization-aware training: layers whose parameters are latent weights, ternarised in every forward pass.

The numbers are those of jaxlm/ops/ternary_linear.py, and gradients pass straight through.
"""

import functools
from collections.abc import Callable
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.packing import unpack
from jaxlm.common.architecture.parameters import Parameter, parameters, scale_name
from jaxlm.common.architecture.ternary import (
    TernaryForm,
    dequantize,
    latent_weight,
    quantize_activation,
    quantize_rows,
    quantize_weight,
    spread,
)
from jaxlm.common.artifact.artifact import Artifact
from mlxlm.load import built_model
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


def latent_model(
    artifact: Artifact, linear: type[LatentBitLinear] = LatentBitLinear, num_layers: int = 0
) -> LanguageModel:
    """Return a model to train: latent weights, of the last `num_layers` blocks only where it is not 0.

    Its other weights stay packed, and only what is to be trained is left unfrozen. A packed artifact has no latent
    weights; they are made from its codes and scales, see `latent_weight`. `linear` is what the ternary linears to be
    trained are made of. Raises ValueError where the model has fewer layers.
    """
    config = artifact.config
    if num_layers > config.num_layers:
        raise ValueError(f"num_layers: found {num_layers}, expected at most the model's {config.num_layers}")
    model = built_model(artifact) if num_layers else LanguageModel(config)
    trained = [parameter for parameter in parameters(config) if is_trained(parameter, config, num_layers)]
    prefixes = {parameter.attribute.removesuffix(".weight") for parameter in trained}
    latent: list[tuple[str, nn.Module]] = []
    for path, module in model.named_modules():
        if isinstance(module, BitLinear) and path in prefixes:
            layer = linear(config, module.in_features, module.weight.shape[0], "bias" in module)
            latent.append((path, layer))
    if config.embedding != "float" and not num_layers:
        latent.append(("embed_tokens", LatentEmbedding(config)))
    model.update_modules(cast(dict[str, Any], tree_unflatten(latent)))
    read = LatentTensors(artifact)
    # One at a time, so that the weights of a packed model are never all in memory as floats twice.
    for parameter in trained:
        model.load_weights([(parameter.attribute, mx.array(read(parameter)))], strict=False)
    mx.eval(model.parameters())
    if num_layers:
        model.freeze()
        for block in model.layers[-num_layers:]:
            block.unfreeze()
    return model


def round_latents(model: LanguageModel) -> None:
    """Round the latent weights of a model in training to bfloat16; what reads them computes in float32."""
    for module in model.modules():
        if isinstance(module, LatentBitLinear | LatentEmbedding):
            module.weight = module.weight.astype(mx.bfloat16)
    mx.eval(model.parameters())


def is_trained(parameter: Parameter, config: ModelConfig, num_layers: int) -> bool:
    """Return True if training of the last `num_layers` blocks, or with 0 of everything, changes a parameter."""
    first, *rest = parameter.attribute.split(".")
    return not num_layers or (first == "layers" and int(rest[0]) >= config.num_layers - num_layers)


class LatentTensors:
    """A reader of the float32 weights that quantize to those of an artifact."""

    def __init__(self, artifact: Artifact):
        self._artifact = artifact

    def __call__(self, parameter: Parameter) -> np.ndarray:
        stored = self._artifact.tensors[parameter.name]
        if self._artifact.kind == "latent" or parameter.storage == "float":
            return stored
        scale = self._artifact.tensors[scale_name(parameter.name)]
        if parameter.storage == "int8":
            return stored * scale
        grid = self._artifact.config.ternary_form.grid(*parameter.shape)
        return latent_weight(unpack(stored, parameter.shape[0]), scale.reshape(grid), np)


def ternary_paths(config: ModelConfig) -> list[str]:
    """Return the paths of the latent weights that are ternarised."""
    return [parameter.attribute for parameter in parameters(config) if parameter.storage == "ternary"]
