"""Logits of a model whose weights are read while its layers run, so that it may be larger than memory."""

import functools
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from jaxlm.checkpoints.weights import Weights, stack_weights, ternary_weights
from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.parameters import parameters
from jaxlm.model.language_model import LanguageModel
from jaxlm.ops.ternary_linear import Params


def streamed_logits(config: ModelConfig, weights: Weights, token_ids: np.ndarray) -> np.ndarray:
    """Return the float32 logits `[B, L, V]` of token ids `[B, L]`, with the layers of one repeat in memory at a time.

    A repeat is one run of the pattern of token mixers.
    """
    weights = ternary_weights(weights, config)
    table = parameters(config)

    def modules(*names: str) -> Params:
        return stack_weights(weights, [each for each in table if each.path[0] in names])

    def layers(repeat: int) -> Params:
        return stack_weights(weights, [each for each in table if each.path[0] == "layers" and each.layer == repeat])

    model = LanguageModel(config)
    one_repeat = LanguageModel(replace(config, num_layers=len(config.token_mixer)))
    x, bounds, context = _apply(model, "embed", modules("embed_tokens", "lower_bounds"), token_ids)
    for repeat in range(config.num_repeats):
        bound = None if bounds is None else bounds[repeat : repeat + 1]
        x = _apply(one_repeat, "blocks", layers(repeat), x, bound, context)
    return np.asarray(_apply(model, "head", modules(*model.head_modules()), x))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _apply(model: LanguageModel, method: str, params: Params, *arguments: Any) -> Any:
    return model.apply({"params": params}, *arguments, method=method)
