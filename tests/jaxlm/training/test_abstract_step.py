import jax
import numpy as np
import pytest

from jaxlm.common.run.optimizer_config import OptimizerConfig
from jaxlm.model.language_model import LanguageModel
from jaxlm.parallel.mesh import MeshConfig, make_mesh
from jaxlm.training.abstract_step import abstract_batch, abstract_step
from jaxlm.training.optimizer import make_optimizer
from jaxlm.training.train_step import init_state
from shared_tokenizer.data.examples import to_example
from shared_tokenizer.data.shards import Span


def shapes(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, np.dtype(leaf.dtype)), tree)


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
