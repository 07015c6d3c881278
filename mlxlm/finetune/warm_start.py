"""Warm start of a ternary model from a dense one: quantization is mixed into its linears, from nothing to all."""

import dataclasses
from typing import cast

import mlx.core as mx

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.ternary import dequantize, quantize_activation, quantize_weight
from jaxlm.common.artifact.artifact import Artifact
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


def warm_start_model(artifact: Artifact) -> LanguageModel:
    """Return the ternary model to train, whose latent weights are those of a dense one.

    Raises ValueError where the model is quantized already, or has sizes that ternary weights cannot have.
    """
    if artifact.config.has_packed_form:
        raise ValueError(
            "quantize: found 'ternary' for a model that is quantized already, expected a dense one; leave quantize out"
        )
    config = dataclasses.replace(artifact.config, linear="ternary", scale_dtype=ModelConfig.scale_dtype)
    return latent_model(dataclasses.replace(artifact, config=config), RampedBitLinear)


def ramp_steps(quantize_steps: int | None, num_train_steps: int) -> int:
    """Return the steps over which lambda rises: half of all where none are given.

    Raises ValueError where the last step would not be one of the ternary model.
    """
    if quantize_steps is None:
        return num_train_steps // 2
    if quantize_steps > num_train_steps - 1:
        raise ValueError(
            f"quantize_steps: found {quantize_steps}, expected at most {num_train_steps - 1}, so that the last of "
            f"{num_train_steps} training steps is one of the ternary model"
        )
    return quantize_steps


class QuantizationRamp:
    """The schedule of lambda for all layers of a model that have one: linear from 0 to 1 in `num_steps` steps."""

    def __init__(self, model: LanguageModel, num_steps: int):
        self._layers = [module for module in model.modules() if isinstance(module, RampedBitLinear)]
        self._num_steps = num_steps
        self.set_step(1)

    def set_step(self, step: int) -> None:
        """Set lambda of all layers to that of a step, counted from 1."""
        done = max(step - 1, 0)
        self._lambda = 1.0 if done >= self._num_steps else done / self._num_steps
        for layer in self._layers:
            layer.set_lambda(self._lambda)

    @property
    def metrics(self) -> dict[str, float]:
        """The share of quantization for metrics; empty where no layer is being quantized."""
        return {"quantize/lambda": self._lambda} if self._layers else {}
