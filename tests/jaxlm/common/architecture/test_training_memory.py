import dataclasses
import math

import jax
import pytest

from jaxlm.common.architecture.presets import preset
from jaxlm.common.architecture.training_memory import training_memory
from jaxlm.common.run.optimizer_config import OptimizerConfig
from jaxlm.model.language_model import LanguageModel
from jaxlm.parallel.mesh import make_mesh
from jaxlm.parallel.mesh_config import MeshConfig
from jaxlm.training.abstract_step import abstract_batch, abstract_step
from jaxlm.training.device_memory import compiled_memory
from jaxlm.training.optimizer import make_optimizer
from jaxlm.training.train_step import init_state


@pytest.mark.parametrize("name", ["bitnet-700m", "mmfree-tiny", "qwen3-0.6b", "qwen2.5-0.5b"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("moment", ["float32", "bfloat16"])
def test_the_state_is_that_of_the_trainer(name, optimizer, moment):
    config = preset(name)
    memory = training_memory(
        config,
        1,
        1,
        activation_bytes=4,
        has_muon=optimizer == "muon",
        first_moment_bytes={"float32": 4, "bfloat16": 2}[moment],
    )
    optimizer = make_optimizer(OptimizerConfig(name=optimizer, first_moment_dtype=moment), 1000)
    state = jax.eval_shape(lambda: init_state(LanguageModel(config), optimizer, 0))
    found = {
        part: sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(getattr(state, part)))
        for part in ("params", "opt_state", "ternary")
    }
    assert found["params"] == memory.parameters == memory.gradient
    # Next to the moments there are counts and coefficients of four bytes, next to the codes one scale per matrix.
    assert 0 <= found["opt_state"] - memory.moments <= 32
    assert 0 <= found["ternary"] - memory.codes < memory.codes / 10_000 + 1


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_short_step_needs_what_its_compiled_program_does(optimizer):
    config = dataclasses.replace(preset("dense-tiny"), num_layers=2)
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    step, state = abstract_step(LanguageModel(config), mesh, recipe=OptimizerConfig(name=optimizer))
    with jax.set_mesh(mesh):
        found = compiled_memory(step.lower(state, abstract_batch(mesh, 1, 16)).compile()).total
    # The update, and not the activations, is the largest part of it: there the optimizers differ.
    expected = training_memory(config, 1, 16, activation_bytes=4, has_muon=optimizer == "muon").total
    assert expected == pytest.approx(found, rel=0.05)


def test_activations_of_a_block_by_hand():
    config = dataclasses.replace(preset("ternary-tiny"), num_layers=1)
    hidden, keys, wide = 256, 128, 768
    # Block input, queries, attention output, keys and values, o_proj output, gate and up; then int8 inputs of linears.
    floats = 5 * hidden + 2 * keys + 2 * wide - hidden
    codes = 3 * hidden + wide
    for itemsize in (2, 4):
        assert training_memory(config, 2, 64, itemsize).activations == 128 * (itemsize * floats + codes)
    dense = training_memory(dataclasses.replace(config, linear="dense"), 2, 64, 4)
    assert (dense.activations, dense.codes) == (128 * 4 * floats, 0)
    recurrent = dataclasses.replace(preset("mmfree-tiny"), num_layers=1)
    # The outputs of i, f and g are computed again; each has a norm of its own before it.
    floats, codes = 2 * hidden + 2 * wide, 5 * hidden + wide
    assert training_memory(recurrent, 2, 64, 4).activations == 128 * (4 * floats + codes)


def test_activations_grow_with_the_batch_and_the_state_does_not():
    config = preset("bitnet-700m")
    small, large = (training_memory(config, batch_size, 2048, 2) for batch_size in (4, 8))
    assert (large.activations, large.workspace) == (2 * small.activations, 2 * small.workspace)
    assert large.total - small.total == small.activations + small.workspace
    # Without activations, the update needs the most: a second gradient and new codes.
    least = training_memory(config, 1, 1, 2)
    assert least.activations + least.workspace == least.gradient + least.codes


def test_a_pattern_of_mixers_is_refused():
    with pytest.raises(ValueError, match="token_mixer: found mlgru, mlgru, attention, expected one for all layers"):
        training_memory(preset("hybrid-5m"), 1, 64, 4)
