import dataclasses

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict

from jaxlm.common.architecture.initial_weights import initial_std, initial_weights
from jaxlm.common.architecture.parameters import parameters
from jaxlm.model.language_model import init_params


def test_distributions_are_those_that_training_starts_from(tiny_config, monkeypatch):
    # A model with attention, recurrence, every norm and an untied head.
    changes = {"token_mixer": ("mlgru", "attention"), "tie_word_embeddings": False, "embedding_range": 0.3}
    config = dataclasses.replace(tiny_config, **changes)
    # The patched initialiser fills a matrix with its standard deviation instead of random numbers.
    monkeypatch.setattr(nn.initializers, "normal", nn.initializers.constant)
    trained_from = flatten_dict(jax.jit(init_params, static_argnums=0)(config, jax.random.key(0)))
    read = initial_weights(config, seed=0)
    for parameter in parameters(config):
        ours = read(parameter.name)
        theirs = np.asarray(trained_from[parameter.path])
        theirs = theirs if parameter.layer is None else theirs[parameter.layer]
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype == np.float32
        if "norm" in parameter.name or "bounds" in parameter.name:
            np.testing.assert_array_equal(ours, theirs, parameter.name)
            continue
        std, error = theirs.mean(), theirs.mean() / theirs.size**0.5
        assert abs(ours.mean()) < 5 * error, parameter.name
        assert abs(ours.std() - std) < 5 * error, parameter.name
        # A uniform distribution of this standard deviation would end at 1.7 times of it.
        assert np.abs(ours).max() > 2.5 * std, parameter.name


def test_matrices_that_write_to_the_residual_stream_start_smaller(tiny_config):
    config = dataclasses.replace(tiny_config, num_layers=8, initializer_range=0.04, embedding_range=0.5)
    stds = {name: initial_std(config, name) for name in ("q_proj", "o_proj", "down_proj", "lm_head", "embed_tokens")}
    assert stds == {"q_proj": 0.04, "o_proj": 0.01, "down_proj": 0.01, "lm_head": 0.04, "embed_tokens": 0.5}


def test_a_seed_gives_the_same_numbers_in_any_order(tiny_config):
    names = [parameter.name for parameter in parameters(tiny_config) if "proj" in parameter.name]
    first = {name: initial_weights(tiny_config, 1)(name) for name in names}
    read = initial_weights(tiny_config, 1)
    for name in reversed(names):
        np.testing.assert_array_equal(read(name), first[name])
    assert not np.array_equal(initial_weights(tiny_config, 2)(names[0]), first[names[0]])
    # No two tensors of the same shape are equal.
    assert not np.array_equal(first[names[0]], first[names[len(names) // 2]])
