import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.common.run.optimizer_config import OptimizerConfig
from jaxlm.model.language_model import init_params
from jaxlm.training.optimizer import decay_mask, learning_rate_schedule, make_optimizer, weight_decay_schedule


def rates(steps=100, **settings):
    config = OptimizerConfig(**{"learning_rate": 1.0, "warmup_steps": 10, "final_fraction": 0.1} | settings)
    schedule = learning_rate_schedule(config, steps)
    return np.array([float(schedule(step)) for step in range(steps)])


@pytest.mark.parametrize("schedule", ["cosine", "cosine_restarts", "wsd", "linear", "two_stage"])
def test_every_schedule_warms_up_to_the_peak_and_never_rests_at_zero(schedule):
    found = rates(schedule=schedule)
    np.testing.assert_allclose(found[:10], np.arange(1, 11) / 10, rtol=1e-6)
    assert found.max() == pytest.approx(1.0)
    assert (found > 0).all()


def test_cosine_and_linear_end_at_the_final_fraction():
    for schedule in ("cosine", "linear", "wsd"):
        assert rates(schedule=schedule)[-1] == pytest.approx(0.1, abs=0.05)
    assert rates(schedule="linear")[55] == pytest.approx(0.55, abs=0.01)


def test_wsd_is_flat_until_its_decay():
    found = rates(schedule="wsd", decay_fraction=0.3)
    np.testing.assert_allclose(found[10:70], 1.0)
    assert found[85] == pytest.approx(0.55, abs=0.01)


def test_restarts_return_to_the_peak():
    found = rates(schedule="cosine_restarts", num_cycles=3, steps=100)
    assert [step for step in range(11, 100) if found[step] > found[step - 1]] == [40, 70]
    np.testing.assert_allclose(found[[10, 40, 70]], 1.0)


def test_two_stages_drop_rate_and_decay_at_half_time():
    settings = {"schedule": "two_stage", "second_learning_rate": 0.3, "warmup_steps": 0}
    found = rates(**settings)
    assert found[49] == pytest.approx(0.51)  # the first half of a decay to zero
    assert found[50] == pytest.approx(0.3)
    assert found[99] == pytest.approx(0.3 / 50)
    decay = weight_decay_schedule(OptimizerConfig(**settings), 100)
    assert [float(decay(step)) for step in (0, 49, 50, 99)] == pytest.approx([0.1, 0.1, 0.0, 0.0])


def test_weight_decay_has_a_course_of_its_own():
    def decay(step, **settings):
        found = weight_decay_schedule(OptimizerConfig(**settings), 10)
        return float(found(step) if callable(found) else found)

    for settings in ({"schedule": "two_stage"}, {"weight_decay_schedule": "zero_at_half"}):
        assert [decay(step, **settings) for step in (4, 5)] == pytest.approx([0.1, 0.0])
    for settings in ({}, {"schedule": "two_stage", "weight_decay_schedule": "constant"}):
        assert [decay(step, **settings) for step in (4, 5)] == pytest.approx([0.1, 0.1])
    with pytest.raises(ValueError, match="weight_decay_schedule: has no effect with weight_decay 0"):
        OptimizerConfig(weight_decay=0.0, weight_decay_schedule="constant")


def test_matrices_are_decayed_and_norms_and_embeddings_are_not(tiny_config):
    params = jax.eval_shape(lambda: init_params(tiny_config, jax.random.key(0)))
    mask = decay_mask(params)
    assert mask["layers"]["mlp"]["down_proj"]["weight"] and mask["layers"]["self_attn"]["q_proj"]["weight"]
    assert not mask["embed_tokens"]["weight"]
    assert not mask["norm"]["weight"]
    assert not mask["layers"]["input_layernorm"]["weight"]
    assert not mask["layers"]["mlp"]["ffn_sub_norm"]["weight"]


def test_the_gradient_is_clipped_by_its_global_norm():
    params = {"lm_head": {"weight": jnp.zeros((2, 2))}}
    huge = {"lm_head": {"weight": jnp.full((2, 2), 1e6)}}
    optimizer = make_optimizer(OptimizerConfig(grad_clip_norm=1.0, warmup_steps=0), 10)
    _, state = optimizer.update(huge, optimizer.init(params), params)
    moment = next(leaf for leaf in jax.tree.leaves(state) if getattr(leaf, "shape", ()) == (2, 2))
    assert float(jnp.linalg.norm(moment)) == pytest.approx(0.1, rel=1e-3)  # (1 - b1) times a gradient of norm 1


def test_muon_orthogonalizes_each_matrix_of_a_stack_and_leaves_the_rest_to_adamw(tiny_config):
    params = init_params(tiny_config, jax.random.key(0))
    grads = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(1), leaf.shape), params)
    updates, states = {}, {}
    for name in ("adamw", "muon"):
        settings = {"name": name, "weight_decay": 0.0, "learning_rate": 1.0, "warmup_steps": 0}
        optimizer = make_optimizer(OptimizerConfig(**settings), 10)
        updates[name], states[name] = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    adamw, muon = (updates[name]["layers"]["mlp"]["down_proj"]["weight"] for name in ("adamw", "muon"))
    assert adamw.shape[0] == tiny_config.num_layers
    for layer in muon:
        singular = jnp.linalg.svd(layer, compute_uv=False) / (0.2 * np.sqrt(max(layer.shape)))
        assert singular.min() > 0.3 and singular.max() < 1.3
    for path in (("embed_tokens",), ("norm",), ("layers", "input_layernorm"), ("layers", "mlp", "ffn_sub_norm")):
        found, expected = updates["muon"], updates["adamw"]
        for key in path:
            found, expected = found[key], expected[key]
        np.testing.assert_array_equal(found["weight"], expected["weight"])
    matrices = sum(leaf.size for path, leaf in jax.tree.leaves_with_path(params["layers"]) if "proj" in str(path))
    held = {name: sum(leaf.size for leaf in jax.tree.leaves(states[name]) if leaf.size > 3) for name in states}
    assert held["adamw"] - held["muon"] == matrices


def test_a_momentum_without_muon_is_refused():
    with pytest.raises(ValueError, match="muon_momentum: has no effect with name 'adamw', only with 'muon'"):
        OptimizerConfig(muon_momentum=0.9)
