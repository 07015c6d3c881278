"""Warm start of a ternary model from a dense one: quantization is mixed into its linears, from nothing to all."""

import dataclasses
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.ternary import dequantize, quantize_activation, quantize_weight
from jaxlm.common.artifact.artifact import Artifact
from jaxlm.common.artifact.inserted_norms import with_sub_norms
from jaxlm.common.objectives.quantization_course import QuantizationCourse
from mlxlm.finetune.qat import LatentBitLinear, latent_model, straight_through
from mlxlm.model.language_model import LanguageModel


class RampedBitLinear(LatentBitLinear):
    """A dense linear that becomes a BitLinear: y = x~ w~^T, where v~ = (1 - lambda) v + lambda q(v).

    Gradients are straight-through, as in a BitLinear: dw = dy^T x~ and dx = dy w~. At lambda 0 it is the dense linear,
    at lambda 1 the LatentBitLinear, to the bit. It has no norm inside, because a dense linear has none.
    """

    def __init__(self, config: ModelConfig, in_features: int, out_features: int, has_bias: bool = False):
        super().__init__(config, in_features, out_features, has_bias)
        self._form = config.ternary_form
        self.set_lambda(0.0)

    def set_lambda(self, value: float) -> None:
        """Share of the quantized weights in the mixture, 0 to 1."""
        # An array is an input of the compiled step. At 1 there is none, and the step is compiled once more.
        self._lambda = mx.array(value) if value < 1 else None

    def __call__(self, x: mx.array) -> mx.array:
        if self._lambda is None:
            return super().__call__(x)
        quantized, scale = quantize_activation(mx.stop_gradient(x), mx)
        codes, weight_scale = quantize_weight(mx.stop_gradient(self.weight), self._form, mx)
        weight = _mixed(self._lambda, self.weight, dequantize(codes, weight_scale, mx))
        return self.with_bias(_mixed(self._lambda, x, quantized / scale) @ weight.T)


def _mixed(share: mx.array, value: mx.array, quantized: mx.array) -> mx.array:
    mixed = (1 - share) * mx.stop_gradient(value) + share * quantized
    return cast(mx.array, straight_through(value, mixed.astype(value.dtype)))


class RampedNorm(nn.RMSNorm):
    """A norm that is mixed in: (1 - lambda) x + lambda norm(x). At lambda 1 it is the norm, to the bit."""

    def set_lambda(self, value: float) -> None:
        """Share of the norm in the output, 0 to 1."""
        self._lambda = mx.array(value) if value < 1 else None

    def __call__(self, x: mx.array) -> mx.array:
        normed = super().__call__(x)
        if self._lambda is None:
            return normed
        return ((1 - self._lambda) * x + self._lambda * normed).astype(x.dtype)


def warm_start_model(artifact: Artifact, *, insert_sub_norm: bool = False) -> LanguageModel:
    """Return the ternary model to train, whose latent weights are those of a dense one.

    Raises ValueError where the model is quantized already, has sub-norms where they are to be inserted, or has sizes
    that ternary weights cannot have.
    """
    if artifact.config.has_packed_form:
        raise ValueError(
            "quantize: found 'ternary' for a model that is quantized already, expected a dense one; leave quantize out"
        )
    if insert_sub_norm:
        artifact = with_sub_norms(artifact)
    config = dataclasses.replace(artifact.config, linear="ternary", scale_dtype=ModelConfig.scale_dtype)
    model = latent_model(dataclasses.replace(artifact, config=config), RampedBitLinear)
    if insert_sub_norm:
        _ramp_sub_norms(model)
    return model


def _ramp_sub_norms(model: LanguageModel) -> None:
    """Replace each sub-norm by one that is mixed in, with the same gain."""
    ramped: list[tuple[str, nn.Module]] = []
    for path, module in model.named_modules():
        if isinstance(module, nn.RMSNorm) and path.endswith("_sub_norm"):
            norm = RampedNorm(module.weight.shape[0], module.eps)
            norm.weight = module.weight
            ramped.append((path, norm))
    model.update_modules(cast(dict[str, Any], tree_unflatten(ramped)))


class QuantizationRamp:
    """The course of lambda for all layers of a model that have one."""

    def __init__(self, model: LanguageModel, course: QuantizationCourse):
        self._layers = [module for module in model.modules() if isinstance(module, RampedBitLinear | RampedNorm)]
        self._course = course
        self.set_step(1)

    def set_step(self, step: int) -> None:
        """Set lambda of all layers to that of a step, counted from 1."""
        self._lambda = self._course.share(max(step - 1, 0))
        for layer in self._layers:
            layer.set_lambda(self._lambda)

    @property
    def metrics(self) -> dict[str, float]:
        """The share of quantization for metrics; empty where no layer is being quantized."""
        return {"quantize/lambda": self._lambda} if self._layers else {}
