import dataclasses

import jax
import numpy as np
import pytest

from jaxlm.checkpoints.weights import stack_weights, tree_weights
from jaxlm.common.architecture.parameters import parameters
from jaxlm.conversion.streamed_logits import streamed_logits
from jaxlm.model.language_model import LanguageModel
from jaxlm.ops.ternary_linear import ternarize
from tests.golden.golden_models import golden_weights

IDS = np.random.default_rng(0).integers(0, 300, (2, 9))
CHANGES = {
    "dense, untied": {"linear": "dense", "tie_word_embeddings": False},
    "pattern of ternary layers": {"token_mixer": ("mlgru", "attention"), "num_layers": 4, "embedding": "int8"},
}


def recording(weights, asked):
    return lambda parameter: asked.append(parameter.name) or weights(parameter)


@pytest.mark.parametrize("what", CHANGES)
def test_logits_equal_those_of_the_model_and_each_layer_is_read_when_it_runs(tiny_config, what):
    config = dataclasses.replace(tiny_config, **CHANGES[what])
    latent = golden_weights(config)
    params = stack_weights(lambda parameter: latent[parameter.name], parameters(config))
    expected = jax.jit(LanguageModel(config).apply)({"params": ternarize(params, config)}, IDS)
    asked = []
    found = streamed_logits(config, recording(tree_weights(params), asked), IDS)
    # Each layer is compiled on its own, so the last bit may round differently.
    np.testing.assert_allclose(found, expected, atol=1e-4)
    layers = [int(name.split(".")[2]) for name in asked if name.startswith("model.layers.")]
    per_repeat = len(config.token_mixer)
    assert sorted(layers, key=lambda layer: layer // per_repeat) == layers and len(set(asked)) == len(latent)
