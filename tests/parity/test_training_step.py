"""Training steps in JAX and in MLX, from the same latent artifact on the same batches."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import mlx.core as mx
import mlx.nn
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

import jaxlm.model.loss
import mlxlm.finetune.optimizer
import mlxlm.model.loss
from jaxlm.checkpoints.weights import artifact_params
from jaxlm.common.architecture.parameters import parameters
from jaxlm.common.architecture.ternary import TernaryForm, quantize_weight
from jaxlm.common.artifact.blank_artifact import save_blank_artifact
from jaxlm.common.formats.open_model import open_model
from jaxlm.common.run.optimizer_config import OptimizerConfig
from jaxlm.common.ternary_health import FLIPS, ZEROS, by_layer
from jaxlm.model.language_model import LanguageModel
from jaxlm.ops.ternary_linear import quantize_params, ternarize_weight, ternary_linear, with_ternary
from jaxlm.training.optimizer import learning_rate_schedule, make_optimizer
from jaxlm.training.train_step import TrainState, make_train_step
from mlxlm.finetune.optimizer import AdamW, sum_of_squares
from mlxlm.finetune.qat import latent_model, latent_ternary_linear, ternary_paths
from mlxlm.finetune.train_step import TrainStep
from mlxlm.model.trees import flat_arrays
from tests.conftest import VARIANTS


@pytest.fixture(autouse=True)
def uncompiled():
    """On a CPU, MLX compiles with g++: seconds a test."""
    mx.disable_compile()
    yield
    mx.enable_compile()


def batch(vocab_size, seed=0, rows=2, length=12):
    """Packed documents with some tokens that are not learned."""
    rng = np.random.default_rng(seed)
    segment_ids = np.cumsum(rng.random((rows, length)) < 0.15, axis=1).astype(np.int32)
    segment_ids -= segment_ids[:, :1]
    begins = np.diff(segment_ids, axis=1, prepend=-1) != 0
    index = np.arange(length, dtype=np.int32)
    positions = index - np.maximum.accumulate(np.where(begins, index, 0), axis=1)
    return {
        "inputs": rng.integers(0, vocab_size, (rows, length)).astype(np.int32),
        "targets": rng.integers(0, vocab_size, (rows, length)).astype(np.int32),
        "positions": positions.astype(np.int32),
        "segment_ids": segment_ids,
        "loss_mask": rng.random((rows, length)) < 0.7,
    }


def as_mlx(arrays):
    return {name: mx.array(array) for name, array in arrays.items()}


@pytest.fixture(params=["ternary_head", "hybrid", "int8_embedding", "qk_norm"])
def artifact(request, tiny_config, tmp_path):
    changes = VARIANTS[request.param] | ({"attention_bias": True} if request.param == "qk_norm" else {})
    changes |= {"num_layers": 3} if request.param == "hybrid" else {"num_layers": 1}
    config = dataclasses.replace(tiny_config, **changes)
    save_blank_artifact(tmp_path / "artifact", config, seed=1)
    return open_model(tmp_path / "artifact")


def by_attribute(config, tree):
    """The leaves of a JAX tree by the paths of MLX's modules."""
    flat = flatten_dict(tree)
    return {
        parameter.attribute: np.asarray(
            flat[parameter.path] if parameter.layer is None else flat[parameter.path][parameter.layer]
        )
        for parameter in parameters(config)
    }


def jax_loss(artifact, z_loss=0.0):
    """Summed loss and gradients of a batch, compiled."""
    params, model = artifact_params(artifact), LanguageModel(artifact.config)

    def loss(params, arrays):
        ternary = quantize_params(params, artifact.config)
        return jaxlm.model.loss.loss_sum(model, with_ternary(params, ternary), arrays, 1, z_loss)[0]

    compiled = jax.jit(jax.value_and_grad(loss))
    return lambda arrays: compiled(params, arrays)


def distance(found, expected):
    """Norm of the difference of two trees, relative to the norm of the second."""
    differences = [np.linalg.norm(np.array(found[path]) - expected[path]) for path in expected]
    return np.linalg.norm(differences) / np.linalg.norm([np.linalg.norm(array) for array in expected.values()])


def test_one_step_on_packed_documents_is_that_of_jax(artifact):
    config, model = artifact.config, latent_model(artifact)
    theirs, ours = jax_loss(artifact), mlx.nn.value_and_grad(model, mlxlm.model.loss.loss_sum)
    differences = {}
    for seed in range(4):
        arrays = batch(config.vocab_size, seed)
        (nats, count), _ = ours(model, as_mlx(arrays))
        assert count.item() == arrays["loss_mask"].sum()
        differences[seed] = abs(nats.item() / float(theirs(arrays)[0]) - 1)
    # A last bit may push an activation over a rounding border, but not in every batch; without that they agree.
    assert max(differences.values()) < 1e-3
    chosen = min(differences, key=differences.__getitem__)
    assert differences[chosen] < 1e-6

    arrays = batch(config.vocab_size, chosen)
    nats, gradients = float(theirs(arrays)[0]), by_attribute(config, theirs(arrays)[1])
    tokens = int(arrays["loss_mask"].sum())
    found_gradients = flat_arrays(ours(model, as_mlx(arrays))[1])
    assert found_gradients.keys() == gradients.keys()
    assert distance(found_gradients, gradients) < 1e-3

    # With a large epsilon the change follows the gradient, and not the sign of what is nearly zero.
    settings = OptimizerConfig(eps=1.0, warmup_steps=0, learning_rate=1.0)
    before = flat_arrays(model.parameters())
    step = TrainStep(model, AdamW(settings, 10), grad_accumulation_steps=2, ternary=ternary_paths(config))
    metrics = step(as_mlx(arrays))
    assert float(metrics["train/loss"]) == pytest.approx(nats / tokens, abs=1e-4)
    assert 0 < float(metrics["ternary/zero_fraction"]) < 1 and 0 < float(metrics["ternary/flip_rate"]) < 0.5
    optimizer = make_optimizer(settings, 10)
    params = {path: np.array(array) for path, array in before.items()}
    mean = {path: gradient / tokens for path, gradient in gradients.items()}
    nested = [unflatten_dict(flat, sep=".") for flat in (params, mean)]
    updates, _ = optimizer.update(nested[1], optimizer.init(nested[0]), nested[0])
    changes = {path: np.array(array) - params[path] for path, array in flat_arrays(model.parameters()).items()}
    assert distance(changes, flatten_dict(updates, sep=".")) < 1e-3


@pytest.mark.parametrize("chunks", [1, 3])
def test_z_loss_soft_cap_and_rational_activation_are_those_of_jax(tiny_config, tmp_path, chunks):
    changes = {"linear": "dense", "sub_norm": False, "num_layers": 1, "logit_softcap": 0.5, "activation": "rational"}
    save_blank_artifact(tmp_path / "artifact", dataclasses.replace(tiny_config, **changes), seed=1)
    artifact = open_model(tmp_path / "artifact")
    arrays, model = batch(artifact.config.vocab_size), latent_model(artifact)
    loss, gradients = jax_loss(artifact, z_loss=0.1)(arrays)
    step = mlx.nn.value_and_grad(model, functools.partial(mlxlm.model.loss.loss_sum, chunks=chunks, z_loss=0.1))
    (found, _), found_gradients = step(model, as_mlx(arrays))
    assert found.item() == pytest.approx(float(loss), rel=1e-6)
    assert distance(flat_arrays(found_gradients), by_attribute(artifact.config, gradients)) < 1e-5
    assert found.item() != pytest.approx(float(jax_loss(artifact)(arrays)[0]), rel=1e-3)


@pytest.mark.parametrize("artifact", ["ternary_head", "hybrid"], indirect=True)
def test_fifty_steps_end_at_the_codes_of_jax(artifact):
    """One rounding flip makes more: two runs of JAX whose first weights differ by 1e-7 drift apart as far as these."""
    config, settings = artifact.config, OptimizerConfig(learning_rate=5e-4, warmup_steps=5)
    optimizer, params = make_optimizer(settings, 50), artifact_params(artifact)
    state = TrainState(jnp.int32(0), params, optimizer.init(params), quantize_params(params, config))
    jax_step = make_train_step(LanguageModel(config), optimizer, learning_rate_schedule(settings, 50), 1)
    model = latent_model(artifact)
    mlx_step = TrainStep(model, AdamW(settings, 50), grad_accumulation_steps=1, ternary=ternary_paths(config))
    before, losses = ternary_codes(config, flat_arrays(model.parameters())), []
    for step in range(50):
        arrays = batch(config.vocab_size, seed=step % 4, rows=8, length=24)
        state, metrics = jax_step(state, arrays)
        mlx_metrics = mlx_step(as_mlx(arrays))
        losses.append([float(found["train/loss"]) for found in (metrics, mlx_metrics)])
        assert mlx_metrics.keys() == metrics.keys()
        for name in (by_layer(ZEROS), by_layer(FLIPS)):
            np.testing.assert_allclose(np.array(mlx_metrics[name]), metrics[name], atol=0.01)
    expected = ternary_codes(config, by_attribute(config, jax.device_get(state.params)))
    found = ternary_codes(config, flat_arrays(model.parameters()))
    differing, moved = np.mean(found != expected), np.mean(before != expected)
    assert differing < 0.01 and differing < moved / 10
    assert np.abs(np.diff(losses)).mean() < 5e-3


def ternary_codes(config, latent):
    """All codes of latent weights by the paths of MLX's modules, one after another."""
    matrices = [np.array(latent[path]) for path in ternary_paths(config)]
    return np.concatenate([quantize_weight(matrix, config.ternary_form, np)[0].ravel() for matrix in matrices])


def test_a_ternary_layer_and_its_gradients_are_those_of_jax():
    rng = np.random.default_rng(0)
    x, weight, dy = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 5, 32), (24, 32), (2, 5, 24)))
    ternary = ternarize_weight(jnp.asarray(weight), TernaryForm()).replace(latent=jnp.asarray(weight))
    y, backward = jax.vjp(ternary_linear, jnp.asarray(x), ternary)
    dx, dternary = backward(jnp.asarray(dy))
    found, gradients = mx.vjp(latent_ternary_linear(TernaryForm()), [mx.array(x), mx.array(weight)], [mx.array(dy)])
    for ours, theirs in ((found[0], y), (gradients[0], dx), (gradients[1], dternary.latent)):
        np.testing.assert_allclose(np.array(ours), theirs, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("schedule", ["cosine", "cosine_restarts", "wsd", "linear", "two_stage"])
def test_learning_rates_are_those_of_optax(schedule):
    settings = OptimizerConfig(schedule=schedule, warmup_steps=5)
    expected = learning_rate_schedule(settings, 40)
    for step in (0, 3, 4, 5, 6, 19, 20, 21, 33, 39):
        found = AdamW(settings, 40).factors(step)["learning_rate"]
        assert found.item() == pytest.approx(float(expected(step)), rel=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"schedule": "two_stage", "grad_clip_norm": 0.5},
        {"first_moment_dtype": "bfloat16", "grad_clip_norm": 0.0},
        {"name": "muon", "weight_decay_schedule": "zero_at_half"},
    ],
)
def test_updates_are_those_of_optax(settings):
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=2, **settings)
    rng = np.random.default_rng(0)
    shapes = {
        "lm_head.weight": (4, 3),
        "norm.weight": (3,),
        "layers.mlp.weight": (4, 3),
        "layers.o_proj.weight": (3, 5),
    }
    params = {path: rng.standard_normal(shape).astype(np.float32) for path, shape in shapes.items()}
    optimizer, ours = make_optimizer(config, 6), mlxlm.finetune.optimizer.make_optimizer(config, 6)
    expected = unflatten_dict(params, sep=".")
    found, states = as_mlx(params), [optimizer.init(expected), ours.init(as_mlx(params))]
    for step in range(6):
        gradients = {path: rng.standard_normal(array.shape).astype(np.float32) for path, array in params.items()}
        updates, states[0] = optimizer.update(unflatten_dict(gradients, sep="."), states[0], expected)
        expected = optax.apply_updates(expected, updates)
        norm = mx.sqrt(sum_of_squares(as_mlx(gradients)))
        found, states[1] = ours.update(found, as_mlx(gradients), states[1], ours.factors(step), norm)
    for path, array in flatten_dict(expected, sep=".").items():
        np.testing.assert_allclose(np.array(found[path]), array, rtol=1e-6, atol=1e-6)
