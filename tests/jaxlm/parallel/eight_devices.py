"""Tests on a mesh of 8 simulated devices; run by test_sharding.py in a process of its own."""

import dataclasses
import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxlm.checkpoints.checkpoint import Checkpoints, restore_params
from jaxlm.common.architecture.parameters import block_matrix_parameter_count
from jaxlm.common.architecture.ternary import TernaryForm
from jaxlm.common.objectives.distillation import Distillation
from jaxlm.common.objectives.quantization_course import QuantizationCourse
from jaxlm.common.run.optimizer_config import OptimizerConfig
from jaxlm.model.language_model import LanguageModel, init_params
from jaxlm.ops.cross_entropy import cross_entropy_sum, token_cross_entropy
from jaxlm.ops.ternary_linear import ternarize, ternarize_weight, ternary_linear
from jaxlm.parallel.mesh import make_mesh
from jaxlm.parallel.mesh_config import MeshConfig
from jaxlm.parallel.sharding import batch_sharding, global_batch, place, tree_shardings
from jaxlm.training.abstract_step import abstract_step
from jaxlm.training.objectives.distillation import distillation
from jaxlm.training.objectives.preference import preference
from jaxlm.training.optimizer import learning_rate_schedule, make_optimizer
from jaxlm.training.train_step import init_state, make_train_step
from tests.conftest import TINY, VARIANTS
from tests.jaxlm.checkpoints.test_checkpoint import make_iterator
from tests.jaxlm.training.test_train_step import make_batch

STEPS = 20
# Small steps: codes that flip at other times would make the losses of two ternary runs differ more.
OPTIMIZER = OptimizerConfig(learning_rate=3e-4, warmup_steps=2)
NAMES = ("dense", "ternary", "mlgru", "scales_by_group")
MODELS = {name: dataclasses.replace(TINY, **VARIANTS[name]) for name in NAMES}
MODELS["dense"] = dataclasses.replace(MODELS["dense"], attention_bias=True, qk_norm=True)
MODELS["muon"] = MODELS["dense"]
MESHES = {
    "one device": MeshConfig(),
    "data 8": MeshConfig(),
    "fsdp 8": MeshConfig(fsdp=-1),
    "data 2 fsdp 2 tensor 2": MeshConfig(data=2, fsdp=2, tensor=2),
    "data 2 sequence 4": MeshConfig(sequence=4),
    "fsdp 2 sequence 2 tensor 2": MeshConfig(fsdp=2, sequence=2, tensor=2),
}


def mesh_of(name):
    return make_mesh(MESHES[name], jax.devices()[:1] if name == "one device" else None)


def recipe(model):
    return dataclasses.replace(OPTIMIZER, name="muon") if model == "muon" else OPTIMIZER


@functools.cache
def fresh_state(model):
    """On one device; kept as plain arrays, for a step takes its state away."""
    state = jax.jit(lambda: init_state(LanguageModel(MODELS[model]), make_optimizer(recipe(model), STEPS), seed=0))()
    return jax.tree.map(np.asarray, state)


@functools.cache
def compiled(model, mesh_name, grad_accumulation_steps):
    """The training step, and where its state lives."""
    mesh, state = mesh_of(mesh_name), fresh_state(model)
    shardings = tree_shardings(mesh, state)
    out = (shardings, NamedSharding(mesh, PartitionSpec()))
    optimizer, schedule = make_optimizer(recipe(model), STEPS), learning_rate_schedule(recipe(model), STEPS)
    step = make_train_step(
        LanguageModel(MODELS[model]), optimizer, schedule, grad_accumulation_steps, out_shardings=out
    )
    state = place(state, shardings)
    with jax.set_mesh(mesh):
        return step.lower(state, global_batch(mesh, make_batch(rows=16))).compile(), shardings


@functools.cache
def train(model, mesh_name, grad_accumulation_steps):
    """State after STEPS steps, their losses, and the ternary health of the first."""
    mesh = mesh_of(mesh_name)
    step, shardings = compiled(model, mesh_name, grad_accumulation_steps)
    state, losses, health = place(fresh_state(model), shardings), [], {}
    for number in range(STEPS):
        state, metrics = step(state, global_batch(mesh, make_batch(rows=16, seed=number % 4)))
        losses.append(float(metrics["train/loss"]))
        health = health or {name: value for name, value in metrics.items() if name.startswith("ternary/")}
    return state, losses, health


@pytest.mark.parametrize(
    ("model", "mesh", "grad_accumulation_steps"),
    [
        ("dense", "data 8", 1),
        ("dense", "fsdp 8", 2),
        ("dense", "data 2 fsdp 2 tensor 2", 1),
        ("muon", "data 2 fsdp 2 tensor 2", 1),
        ("ternary", "fsdp 8", 1),
        ("mlgru", "data 2 fsdp 2 tensor 2", 1),
        ("dense", "fsdp 2 sequence 2 tensor 2", 2),
        ("ternary", "data 2 sequence 4", 1),
        ("mlgru", "data 2 sequence 4", 1),
    ],
)
def test_a_mesh_trains_as_one_device_does(model, mesh, grad_accumulation_steps):
    _, losses, health = train(model, mesh, grad_accumulation_steps)
    _, expected, expected_health = train(model, "one device", 1)
    difference = max(abs(a / b - 1) for a, b in zip(losses, expected, strict=True))
    print(f"{model} on {mesh}: largest relative difference of {STEPS} losses {difference:.1e}")
    # A last bit of a norm can push an activation over a rounding border, so ternary models drift apart a little.
    assert difference < (1e-5 if model in ("dense", "muon") else 1e-3)
    assert losses[-1] < losses[0]
    assert bool(health) == (model in ("ternary", "mlgru")) and health.keys() == expected_health.keys()
    for name, value in health.items():
        np.testing.assert_allclose(value, expected_health[name], atol=1e-3)


def test_a_teacher_on_a_mesh_teaches_as_on_one_device():
    student, teacher = MODELS["dense"], MODELS["ternary"]
    objective = distillation(teacher, Distillation(relations_weight=1.0, top_k=4), loss_chunks=2)
    params = jax.jit(lambda: [init_params(config, jax.random.key(1)) for config in (student, teacher)])()
    params[1] = ternarize(params[1], teacher)

    def loss(params, teacher, batch):
        return objective(LanguageModel(student), params, batch, {"teacher": teacher})[:2]

    found = []
    for name in ("one device", "data 2 fsdp 2 tensor 2", "data 2 sequence 4"):
        mesh = mesh_of(name)
        placed = place(params, tree_shardings(mesh, params))
        with jax.set_mesh(mesh):
            run = jax.jit(jax.value_and_grad(loss, has_aux=True))
            found.append(run(*placed, global_batch(mesh, make_batch(rows=16))))
    ((loss_alone, _), alone), *others = found
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=0.02)
    for (loss_on_mesh, _), on_mesh in others:
        assert float(loss_on_mesh) == pytest.approx(
            float(loss_alone), rel=1e-4
        )  # of a teacher whose roundings may flip
        jax.tree.map(close, jax.device_get(on_mesh), jax.device_get(alone))


@pytest.mark.parametrize("soft_cap", [None, 2.0])
def test_the_loss_of_split_sequences_in_chunks_is_that_of_one_device(soft_cap):
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(4, 16, 8)).astype(np.float32), rng.normal(size=(12, 8)).astype(np.float32)
    targets, mask = rng.integers(0, 12, (4, 16)), rng.integers(0, 2, (4, 16)).astype(bool)

    def nats(x, weight):
        return cross_entropy_sum(x, weight, targets, mask, chunks=2, name="lm_head", soft_cap=soft_cap)[0]

    expected = jax.value_and_grad(nats, argnums=(0, 1))(x, weight)
    with jax.set_mesh(mesh_of("data 2 sequence 4")):
        found = jax.jit(jax.value_and_grad(nats, argnums=(0, 1)))(x, weight)
        each = jax.jit(lambda x, w: token_cross_entropy(x, w, targets, chunks=2, name="lm_head", soft_cap=soft_cap))
        of_tokens = each(x, weight)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), found, expected)
    np.testing.assert_allclose(np.sum(of_tokens * mask), expected[0], rtol=1e-5)


def losses_of(model, mesh_name, phases, batch, *, extras=None, **settings):
    """Losses of steps of these phases."""
    mesh, losses = mesh_of(mesh_name), []
    steps = {
        phase: abstract_step(
            LanguageModel(MODELS[model]), mesh, recipe=OPTIMIZER, num_train_steps=STEPS, phase=phase, **settings
        )
        for phase in phases
    }
    shapes = steps[phases[0]][1]
    state = place(fresh_state(model), jax.tree.map(lambda leaf: leaf.sharding, shapes))
    with jax.set_mesh(mesh):
        for phase in phases:
            state, metrics = steps[phase][0](state, global_batch(mesh, batch), extras)
            losses.append(float(metrics["train/loss"]))
    return losses


def test_a_mesh_quantizes_little_by_little_as_one_device_does():
    course = QuantizationCourse(float_steps=1, mixed_steps=2, has_new_norms=True)
    phases = [course.phase(step) for step in range(4)]
    assert phases == ["float", "float", "mixed", "ternary"]
    expected = losses_of("ternary", "one device", phases, make_batch(rows=16), course=course)
    losses = losses_of("ternary", "data 2 fsdp 2 tensor 2", phases, make_batch(rows=16), course=course)
    np.testing.assert_allclose(losses[:2], expected[:2], rtol=1e-5)  # no activation is rounded
    np.testing.assert_allclose(losses, expected, rtol=1e-3)
    assert len(set(expected)) == 4


@pytest.mark.parametrize(("kind", "mesh"), [("orpo", "data 2 fsdp 2 tensor 2"), ("dpo", "data 2 sequence 4")])
def test_a_mesh_learns_from_pairs_as_one_device_does(kind, mesh):
    rows: Any = make_batch(rows=16)
    arrays = {name: array.reshape(8, 2, -1) for name, array in rows.items() if name != "segment_ids"}
    # Not in the order of the batch: every device finds the reference of its own pairs.
    batch = arrays | {"pair": np.array([5, 3, 1, 7, 0, 2, 4, 6], np.int32)}
    extras = {"reference": -10 * np.random.default_rng(0).random((8, 2), np.float32)}
    settings = {"objective": preference(kind, 0.5, loss_chunks=2), "extras": extras, "grad_accumulation_steps": 1}
    phases = ["ternary"] * 3
    expected = losses_of("dense", "one device", phases, batch, **settings)
    losses = losses_of("dense", mesh, phases, batch, **settings)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert expected[-1] < expected[0]


def collectives(text):
    """(name, type with shape) of every collective in a compiled program."""
    found = re.findall(r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)\(", text)
    return [(name, array) for arrays, name in found for array in re.findall(r"[a-z]+\d+\[[\d,]*\]", arrays)]


@pytest.mark.parametrize("model", ["ternary", "scales_by_group"])
def test_fsdp_gathers_the_weights_of_blocks_in_two_bits(model):
    """The compiled program holds the promise that devices exchange four ternary weights as a byte."""
    config = MODELS[model]
    gathered = [array for name, array in collectives(compiled(model, "fsdp 8", 1)[0].as_text()) if name == "all-gather"]
    print(f"gathered: {sorted(gathered)}")
    # Seven matrices, forward and backward; whatever is gathered as float is the embedding, or the scales of groups.
    codes = [array for array in gathered if array.startswith("u8")]
    assert len(codes) == 14 and not [array for array in gathered if array.startswith("s8")]
    nbytes = sum(math.prod(map(int, re.findall(r"\d+", array.partition("[")[2]))) for array in codes)
    assert 4 * nbytes == 2 * block_matrix_parameter_count(config) // config.num_layers
    floats = {array for array in gathered if not array.startswith("u8")}
    scales = {array for array in floats if re.fullmatch(r"f32\[1,\d+,[12]\]", array)}
    # By group the embedding is gathered as tiles of one row.
    others = {re.sub(r"(?<=[\[,])1,", "", array) for array in floats - scales}
    assert others <= {f"f32[{config.vocab_size},{config.hidden_size}]"}
    assert bool(scales) == config.ternary_form.is_by_group


def test_micro_batches_stay_on_the_devices_of_their_rows():
    """The compiled program holds the promise that accumulation sends no token ids between devices."""
    found = collectives(compiled("dense", "fsdp 8", 2)[0].as_text())
    assert not [array for name, array in found if array.startswith("s32") and name != "all-reduce"]


@pytest.mark.parametrize(("model", "arrays"), [("ternary", 8), ("mlgru", 7)])
def test_split_sequences_are_exchanged_and_never_gathered(model, arrays):
    """The compiled program holds the promise that devices exchange heads or channels for tokens.

    Queries, keys and values, repeated to as many heads, the output, and their gradients; or decays, updates and
    states, their gradients, and once more what the backward pass reads.
    """
    found = collectives(compiled(model, "data 2 sequence 4", 1)[0].as_text())
    rows, length, width = 8, 16, TINY.hidden_size  # of the batch of 16 on each half of the devices
    # The table of the embedding, the gains of all layers, and what was learned of positions travel as floats.
    floats = {array for name, array in found if name == "all-gather" and array.startswith(("f32", "bf16"))}
    print(f"gathered floats: {sorted(floats)}")
    sizes = {array: math.prod(map(int, re.findall(r"\d+", array.partition("[")[2]))) for array in floats}
    weights = {f"f32[{TINY.vocab_size},{width}]"}
    assert not [array for array, size in sizes.items() if size >= rows * length * 8 and array not in weights]
    exchanged = [array for name, array in found if name == "all-to-all" and array.startswith("f32")]
    print(f"exchanged: {sorted(exchanged)}")
    nbytes = sum(4 * math.prod(map(int, re.findall(r"\d+", array.partition("[")[2]))) for array in exchanged)
    assert nbytes == arrays * 4 * rows * length // 4 * width


def test_no_device_holds_more_than_its_part():
    state, *_ = train("ternary", "fsdp 8", 1)
    for leaf in (state.params["layers"]["mlp"]["up_proj"]["weight"], state.ternary["layers.mlp.up_proj.weight"].codes):
        assert {shard.data.shape for shard in leaf.addressable_shards} == {(2, 64, 4)}
    # A bias is split as the rows of its matrix, a norm of heads is not.
    state, *_ = train("dense", "data 2 fsdp 2 tensor 2", 1)
    attention = state.params["layers"]["self_attn"]
    for leaf, part in ((attention["q_proj"]["bias"], (2, 32)), (attention["q_norm"]["weight"], (2, 16))):
        assert {shard.data.shape for shard in leaf.addressable_shards} == {part}


@pytest.mark.parametrize("form", [TernaryForm(), TernaryForm("row"), TernaryForm("group:32", "float16", None)])
@pytest.mark.parametrize("name", ["up_proj", "down_proj"])
@pytest.mark.parametrize("mesh_name", ["fsdp 8", "data 2 fsdp 2 tensor 2"])
def test_a_ternary_linear_on_a_mesh_has_the_same_codes_and_integer_sums(name, mesh_name, form):
    rng = np.random.default_rng(0)
    x, latent = rng.normal(size=(16, 8, 64)).astype(np.float32), rng.normal(size=(32, 64)).astype(np.float32)

    def linear(x, params):
        weight = ternarize_weight(params[name]["weight"], form)
        return weight.codes, weight.scale, ternary_linear(x, weight)

    params = {name: {"weight": jnp.asarray(latent)}}
    expected = jax.jit(linear)(x, params)
    mesh = mesh_of(mesh_name)
    params = jax.device_put(params, tree_shardings(mesh, params))
    assert not params[name]["weight"].is_fully_replicated
    x = jax.device_put(x, NamedSharding(mesh, PartitionSpec(*batch_sharding(mesh).spec, None)))
    found = jax.jit(linear)(x, params)
    for array, same in zip(found[:2], expected[:2], strict=True):
        np.testing.assert_array_equal(array, same)
    # Sums of floats depend on their order.
    np.testing.assert_allclose(found[2], expected[2], rtol=0, atol=0 if form.activation_bits else 1e-5)


def test_a_checkpoint_goes_from_any_mesh_to_any_other(tmp_path):
    state, *_ = train("ternary", "fsdp 8", 1)
    settings = {"keep_last": 1, "keep_best": 0, "tokenizer_fingerprint": "a", "data_fingerprint": "b", "log": print}
    checkpoints = Checkpoints(tmp_path / "checkpoints", **settings)
    checkpoints.save(20, state.params, state.opt_state, make_iterator(), None)
    checkpoints.finish()
    for name in ("one device", "data 2 fsdp 2 tensor 2", "data 2 sequence 4", "fsdp 8"):
        shardings = tree_shardings(mesh_of(name), state)
        shapes = jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state, shardings)
        found = checkpoints.restore_latest(shapes.params, shapes.opt_state, make_iterator())
        assert found is not None
        for restored, saved, places in (
            (found.params, state.params, shardings.params),
            (found.opt_state, state.opt_state, shardings.opt_state),
        ):
            jax.tree.map(np.testing.assert_array_equal, restored, saved)
            same = jax.tree.map(lambda x, place: x.sharding.is_equivalent_to(place, x.ndim), restored, places)
            assert jax.tree.all(same)
    checkpoints.close()
    _, alone = restore_params(tmp_path / "checkpoints", jax.eval_shape(lambda: state.params), print)
    assert all(len(leaf.devices()) == 1 for leaf in jax.tree.leaves(alone))
    jax.tree.map(np.testing.assert_array_equal, alone, state.params)
