import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxlm.common.architecture.parameters import parameters
from jaxlm.common.run.optimizer_config import OptimizerConfig
from jaxlm.common.ternary_health import FLIPS, ZEROS, by_layer
from jaxlm.model.language_model import LanguageModel
from jaxlm.ops.machine.xla_flags import knows_flag
from jaxlm.ops.ternary_linear import quantize_params
from jaxlm.planning.hlo_module import Module
from jaxlm.training.optimizer import learning_rate_schedule, make_optimizer
from jaxlm.training.train_step import init_state, make_train_step
from shared_tokenizer.data.batches import Batch
from shared_tokenizer.data.examples import to_example
from shared_tokenizer.data.shards import Span
from tests.conftest import TINY, VARIANTS

_FOLDER = Path(__file__).parents[2] / "golden"
GOLDEN = {
    _FOLDER / "train_step.json": TINY,
    _FOLDER / "train_step_hybrid.json": dataclasses.replace(TINY, **VARIANTS["hybrid"]),
}
# Compiled as for users, unlike other programs (see conftest.py): golden steps and sums hold to a rounding or two.
OPTIMIZED = {"xla_backend_optimization_level": 3}
if knows_flag("xla_cpu_use_fusion_emitters"):
    OPTIMIZED["xla_cpu_use_fusion_emitters"] = True
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, warmup_steps=0, schedule="linear")


def begins(row):
    """A document begins after each 2."""
    return np.concatenate([[True], row[:-1] == 2])


def make_batch(rows=4, length=16, seed=0) -> Batch:
    """Tokens with document ends in them, so that the loss mask differs from row to row."""
    tokens = np.random.default_rng(seed).integers(0, 300, (rows, length + 1)).astype(np.int32)
    tokens[1:3, 5] = 2
    examples = [to_example([Span(row, np.ones(length + 1, bool), begins(row))], length) for row in tokens]
    return Batch(**{key: np.stack([example[key] for example in examples]) for key in examples[0]})


@functools.cache
def fresh_state(config, dtype):
    """Return the first state as arrays of numpy: a step deletes the arrays of jax that it is given."""
    state = jax.jit(lambda: init_state(LanguageModel(config, dtype), make_optimizer(OPTIMIZER, 10), seed=0))()
    return jax.tree.map(np.asarray, state)


@functools.cache
def compiled_step(config, grad_accumulation_steps, dtype, is_optimized=True):
    optimizer, schedule = make_optimizer(OPTIMIZER, 10), learning_rate_schedule(OPTIMIZER, 10)
    step = make_train_step(LanguageModel(config, dtype), optimizer, schedule, grad_accumulation_steps)
    lowered = step.lower(fresh_state(config, dtype), make_batch())
    return lowered.compile(compiler_options=OPTIMIZED if is_optimized else None)


@functools.cache
def run_steps(config, grad_accumulation_steps=1, dtype=jnp.float32, is_optimized=True):
    """Return the state after three steps, and the metrics of each."""
    step = compiled_step(config, grad_accumulation_steps, dtype, is_optimized)
    state, lines = jax.tree.map(jnp.asarray, fresh_state(config, dtype)), []
    for number in range(3):
        state, metrics = step(state, make_batch(seed=number))
        lines.append({name: value.tolist() for name, value in metrics.items()})
    return state, lines


def test_accumulation_equals_the_large_batch(tiny_config):
    whole, whole_lines = run_steps(tiny_config, 1)
    split, split_lines = run_steps(tiny_config, 2)
    assert split_lines[0]["train/loss"] == pytest.approx(whole_lines[0]["train/loss"], abs=1e-6)
    assert split_lines[0]["train/grad_norm"] == pytest.approx(whole_lines[0]["train/grad_norm"], rel=1e-4)
    assert int(whole.step) == int(split.step) == 3


def test_the_state_carries_the_codes_of_its_parameters(tiny_config):
    state, lines = run_steps(tiny_config)
    expected = jax.jit(quantize_params, static_argnums=1)(state.params, tiny_config)
    jax.tree.map(np.testing.assert_array_equal, state.ternary, expected)
    assert all(0.2 < line["ternary/zero_fraction"] < 0.45 for line in lines)
    assert all(0 < line["ternary/flip_rate"] < 0.5 for line in lines)


@pytest.mark.parametrize("variant", ["ternary", "ternary_head", pytest.param("hybrid", marks=pytest.mark.whole)])
def test_flips_are_counted_in_the_layer_that_they_are_in(tiny_config, variant):
    """The optimizer turns the sign of one matrix: of its codes, those that are not zero change."""
    config = dataclasses.replace(tiny_config, **VARIANTS[variant])
    turned = next(row for row in parameters(config) if row.block == 1 and row.storage == "ternary")

    def update(gradients, state, params):
        flat = flatten_dict(jax.tree.map(jnp.zeros_like, params))
        flat[turned.path] = flat[turned.path].at[turned.layer].set(-2 * flatten_dict(params)[turned.path][turned.layer])
        return unflatten_dict(flat), state

    optimizer = optax.GradientTransformation(lambda params: optax.EmptyState(), update)
    model = LanguageModel(config)
    step = make_train_step(model, optimizer, learning_rate_schedule(OPTIMIZER, 10), 1)
    state = jax.jit(lambda: init_state(model, optimizer, seed=0))()
    codes = {path: np.asarray(weight.codes) for path, weight in state.ternary.items()}
    _, metrics = step(state, make_batch())
    found = {name: value.tolist() for name, value in metrics.items() if name.startswith("ternary/")}
    sizes, zeros, nonzero = np.zeros((3, config.num_layers + 1))
    for row in parameters(config):
        if row.storage == "ternary":
            block = config.num_layers if row.block is None else row.block
            matrix = codes[".".join(row.path)][... if row.layer is None else row.layer]
            sizes[block] += matrix.size
            zeros[block] += np.sum(matrix == 0)
            nonzero[block] += np.sum(matrix != 0) if row == turned else 0
    assert nonzero[1] > 0
    assert found[by_layer(ZEROS)] == pytest.approx(zeros[:-1] / sizes[:-1])
    assert found[by_layer(FLIPS)] == pytest.approx(nonzero[:-1] / sizes[:-1])
    assert found[ZEROS] == pytest.approx(zeros.sum() / sizes.sum())
    assert found[FLIPS] == pytest.approx(nonzero.sum() / sizes.sum())


def test_float16_trains_with_a_scaled_loss(tiny_config):
    expected, expected_lines = run_steps(tiny_config)
    found, lines = run_steps(tiny_config, dtype=jnp.float16, is_optimized=False)
    assert found.loss_scale.scale == 2**10 and found.loss_scale.fin_steps == 3
    assert expected.loss_scale is None
    # A first step from the same weights; then codes flip at other places.
    assert lines[0]["train/loss"] == pytest.approx(expected_lines[0]["train/loss"], rel=1e-3)
    assert lines[0]["train/grad_norm"] == pytest.approx(expected_lines[0]["train/grad_norm"], rel=2e-2)
    assert lines[2]["train/loss"] == pytest.approx(expected_lines[2]["train/loss"], rel=2e-2)


@pytest.mark.parametrize("grad_accumulation_steps", [1, 2])
def test_a_step_that_overflows_float16_changes_the_scale_alone(tiny_config, grad_accumulation_steps):
    fresh = fresh_state(tiny_config, jnp.float16)
    before = fresh.replace(loss_scale=fresh.loss_scale.replace(scale=np.float32(2.0**30)))
    step = compiled_step(tiny_config, grad_accumulation_steps, jnp.float16, is_optimized=False)
    after, metrics = step(jax.tree.map(jnp.asarray, before), make_batch())
    for part in ("params", "opt_state", "ternary"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, part), getattr(before, part))
    assert after.loss_scale.scale == 2.0**29 == metrics["train/loss_scale"]
    assert metrics["train/grad_norm"] == 0 and np.isfinite(metrics["train/loss"])
    assert int(after.step) == 1


def test_a_checkpoint_holds_the_loss_scale(tiny_config):
    state, _ = run_steps(tiny_config, dtype=jnp.float16, is_optimized=False)
    fresh = jax.eval_shape(
        lambda: init_state(LanguageModel(tiny_config, jnp.float16), make_optimizer(OPTIMIZER, 10), seed=0)
    )
    again = fresh.restored(state.step, state.params, state.optimizer_state(), state.ternary)
    assert jax.tree.structure(again) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, again, state)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_step(path):
    _, lines = run_steps(GOLDEN[path])
    golden = json.loads(path.read_text())
    for number, (found, expected) in enumerate(zip(lines, golden, strict=True)):
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, rel=2e-3), (
                f"step {number}: {name} is {found[name]}, the golden run had {value}. If the change was not meant to "
                "alter the model, its initialisation or the optimizer, this is a bug. If it was, write the new "
                f"numbers with `python -m tests.golden.make_train_step` and say why in the commit. ({path.name})"
            )


def test_the_step_holds_no_reduction_by_a_library():
    """The fused reductions of YNN, some of which are wrong (see `jaxlm.ops.machine.xla_flags`)."""
    module = Module(compiled_step(TINY, 1, jnp.float32).as_text())
    fused = [
        {each.opcode for each in module.computations[instruction.called("calls")].values()}
        for instruction, _ in module.instructions()
        if instruction.opcode == "fusion" and "__ynn_fusion" in instruction.attributes
    ]
    assert not [opcodes for opcodes in fused if "reduce" in opcodes]
