"""What holds on a mesh of 8 simulated devices; run by test_sharding.py in a process of its own."""

import dataclasses
import re

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxlm.checkpoint import Checkpoints
from jaxlm.model import LanguageModel
from jaxlm.optimizer import OptimizerConfig, learning_rate_schedule, make_optimizer
from jaxlm.sharding import MeshConfig, constrain, global_batch, make_mesh, tree_shardings
from jaxlm.spec.ternary import quantize_weight
from jaxlm.ternary_linear import TernaryWeight, ternary_linear
from jaxlm.train_step import init_state, make_train_step
from tests.conftest import TINY, VARIANTS
from tests.jaxlm.test_train_step import make_batch

STEPS = 20
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, warmup_steps=2)
MODELS = {
    name: dataclasses.replace(TINY, **VARIANTS[name], **wide)
    for name, wide in {"dense": {"num_kv_heads": 4}, "ternary": {}, "mlgru": {}}.items()
}
ONE = MeshConfig()
MESHES = {
    "data 8": MeshConfig(data=8),
    "fsdp 8": MeshConfig(fsdp=-1),
    "data 2, fsdp 2, tensor 2": MeshConfig(data=2, fsdp=2, tensor=2),
    "fsdp 2, tensor 4": MeshConfig(fsdp=2, tensor=4),
}


def start(config, mesh_config, grad_accumulation_steps=1):
    """Mesh, state and step of a training run; ONE is a single device."""
    mesh = make_mesh(mesh_config, jax.devices()[:1] if mesh_config is ONE else None)
    optimizer = make_optimizer(OPTIMIZER, STEPS)

    def fresh():
        return init_state(config, optimizer, seed=0)

    shardings = tree_shardings(mesh, jax.eval_shape(fresh))
    out = (shardings, NamedSharding(mesh, PartitionSpec()))
    with jax.set_mesh(mesh):
        state = jax.jit(fresh, out_shardings=shardings)()
        schedule = learning_rate_schedule(OPTIMIZER, STEPS)
        step = make_train_step(LanguageModel(config), optimizer, schedule, grad_accumulation_steps, out)
        batch = global_batch(mesh, make_batch(rows=16))
        return mesh, state, step.lower(state, batch).compile()


def train(config, mesh_config, grad_accumulation_steps=1):
    mesh, state, step = start(config, mesh_config, grad_accumulation_steps)
    losses = []
    for number in range(STEPS):
        state, metrics = step(state, global_batch(mesh, make_batch(rows=16, seed=number % 4)))
        losses.append(float(metrics["train/loss"]))
    return state, losses


@pytest.fixture(scope="module")
def on_one_device():
    return {name: train(config, ONE) for name, config in MODELS.items()}


@pytest.mark.parametrize(
    ("model", "mesh"),
    [
        ("dense", "data 8"),
        ("dense", "fsdp 8"),
        ("dense", "data 2, fsdp 2, tensor 2"),
        ("dense", "fsdp 2, tensor 4"),
        ("ternary", "fsdp 8"),
        ("ternary", "data 2, fsdp 2, tensor 2"),
        ("mlgru", "data 2, fsdp 2, tensor 2"),
    ],
)
def test_a_mesh_trains_as_one_device_does(on_one_device, model, mesh):
    state, losses = train(MODELS[model], MESHES[mesh])
    _, expected = on_one_device[model]
    difference = max(abs(a / b - 1) for a, b in zip(losses, expected, strict=True))
    print(f"{model} on {mesh}: largest relative difference of {STEPS} losses {difference:.1e}")
    # A last bit of a norm can push an activation over a rounding border, so ternary models drift apart a little.
    assert difference < (1e-5 if model == "dense" else 1e-3)
    assert losses[-1] < losses[0] - 0.1


def test_micro_batches_are_spread_over_all_devices(on_one_device):
    _, losses = train(MODELS["dense"], MESHES["fsdp 8"], grad_accumulation_steps=2)
    np.testing.assert_allclose(losses, on_one_device["dense"][1], rtol=1e-5)
    text = start(MODELS["dense"], MESHES["fsdp 8"], 2)[2].as_text()
    print(sorted(set(re.findall(r"s32\[[\d,]+\]", text))))
