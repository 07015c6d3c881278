from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from jaxlm.common.run.optimizer_config import OptimizerConfig
from jaxlm.model.language_model import LanguageModel
from jaxlm.parallel.mesh import make_mesh
from jaxlm.parallel.mesh_config import MeshConfig
from jaxlm.training.abstract_step import abstract_batch, abstract_step
from jaxlm.training.device_memory import bytes_per_device
from jaxlm.training.optimizer import make_optimizer
from jaxlm.training.train_step import init_state
from shared_tokenizer.data.examples import to_example
from shared_tokenizer.data.shards import Span


def shapes(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, np.dtype(leaf.dtype)), tree)


def test_offloaded_moments_count_on_the_host_and_not_on_the_device(tiny_config):
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    _, here = abstract_step(LanguageModel(tiny_config), mesh)
    step, away = abstract_step(LanguageModel(tiny_config), mesh, offload="optimizer")
    kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(away.opt_state) if leaf.ndim}
    assert kinds == {"pinned_host"} and away.params == here.params
    moments = bytes_per_device([leaf for leaf in jax.tree.leaves(here.opt_state) if leaf.ndim])
    assert bytes_per_device(here) - bytes_per_device(away) == moments > 0
    with jax.set_mesh(mesh):
        text = step.lower(away, abstract_batch(mesh, 2, 8)).as_text()
    assert "annotate_device_placement" in text and "pinned_host" in text


def test_offloaded_moments_train_equal_to_the_bit(tiny_config):
    """CPUs have this memory too, so the program runs there, where a run with it is refused."""
    mesh, model = make_mesh(MeshConfig(data=1), jax.devices()[:1]), LanguageModel(replace(tiny_config, num_layers=1))
    recipe = OptimizerConfig(warmup_steps=0)
    rng = np.random.default_rng(0)
    batch: Any = {name: rng.integers(0, 300, (2, 8)).astype(np.int32) for name in ("inputs", "targets")}
    batch |= {"positions": np.tile(np.arange(8, dtype=np.int32), (2, 1)), "segment_ids": np.zeros((2, 8), np.int32)}
    batch["loss_mask"] = np.ones((2, 8), bool)
    found = []
    for offload in (None, "optimizer"):
        with jax.set_mesh(mesh):
            step, shapes = abstract_step(model, mesh, recipe=recipe, num_train_steps=4, offload=offload)
            shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
            optimizer = make_optimizer(recipe, 4)
            state = jax.jit(lambda o=optimizer: init_state(model, o, 0), out_shardings=shardings)()
            for _ in range(2):
                state, _ = step(state, batch)
        found.append(jax.tree.map(np.asarray, state.params))
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_the_state_and_what_a_step_makes_of_it_are_those_of_a_run(tiny_config):
    mesh = make_mesh(MeshConfig())
    step, state = abstract_step(LanguageModel(tiny_config), mesh, grad_accumulation_steps=2)
    optimizer = make_optimizer(OptimizerConfig(), 1000)
    assert shapes(state) == shapes(jax.eval_shape(lambda: init_state(LanguageModel(tiny_config), optimizer, 0)))
    with jax.set_mesh(mesh):
        after, metrics = jax.eval_shape(step, state, abstract_batch(mesh, 4, 16))
    assert shapes(after) == shapes(state)
    assert metrics["train/loss"].shape == ()
    assert all(leaf.sharding.mesh.shape == mesh.shape for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("document_mask", [True, False])
def test_a_batch_is_like_those_that_are_read(document_mask):
    tokens = np.arange(9)
    example = to_example([Span(tokens, np.ones(9, bool), np.zeros(9, bool))], 8, document_mask=document_mask)
    found = abstract_batch(make_mesh(MeshConfig()), 4, 8, document_mask)
    assert shapes(found) == shapes({name: np.stack([rows] * 4) for name, rows in example.items()})
