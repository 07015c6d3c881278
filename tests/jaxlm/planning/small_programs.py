"""Small programs of known cost, compiled for eight simulated devices; test_hlo_costs.py runs it and reads its JSON."""

import dataclasses
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxlm.common.architecture.model_flops import model_flops
from jaxlm.common.architecture.parameters import parameters
from jaxlm.common.architecture.presets import preset
from jaxlm.model.language_model import LanguageModel
from jaxlm.parallel.mesh import make_mesh
from jaxlm.parallel.mesh_config import MeshConfig
from jaxlm.planning.hlo_costs import hlo_costs
from jaxlm.training.abstract_step import abstract_batch, abstract_step
from jaxlm.training.objectives.next_token import next_token


def costs(function: Any, *arguments: Any) -> dict[str, Any]:
    """Return the costs of a function compiled for these arguments."""
    return dataclasses.asdict(hlo_costs(jax.jit(function).lower(*arguments).compile().as_text() or ""))


def floats(*shape: int) -> jax.ShapeDtypeStruct:
    """Return an array of these sizes."""
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def scans(x, weights):
    """Compute five times three matrix products."""

    def outer(x, _):
        return jax.lax.scan(lambda x, weight: (jnp.tanh(x @ weight), None), x, weights)[0], None

    return jax.lax.scan(outer, x, None, length=5)[0]


def until(x, weight):
    """Run a loop whose end depends on the data."""
    return jax.lax.while_loop(lambda x: jnp.sum(x) > 1, lambda x: jnp.tanh(x @ weight), x)


def int8(x, weight):
    """Compute an integer product."""
    return jax.lax.dot_general(x, weight, (((1,), (0,)), ((), ())), preferred_element_type=jnp.int32)


def convolution(x, kernel, dilation):
    """Compute a convolution in one spatial dimension."""
    return jax.lax.conv_general_dilated(x, kernel, (1,), [(1, 1)], lhs_dilation=(dilation,))


def collectives() -> dict[str, Any]:
    """Return the costs of one collective of each kind over all devices, and of one over half of them."""
    mesh = Mesh(jax.devices(), ("all",))

    def body(x):
        gathered = jax.lax.all_gather((x > 0).astype(jnp.int8), "all")
        summed = jax.lax.psum(jnp.sin(x), "all")
        scattered = jax.lax.psum_scatter(jnp.tile(jnp.cos(x), (8, 1)), "all", tiled=True)
        swapped = jax.lax.all_to_all(x.astype(jnp.int32), "all", 0, 0, tiled=True)
        ring = [(i, (i + 1) % 8) for i in range(8)]
        turned = jax.lax.fori_loop(0, 6, lambda _, x: jax.lax.ppermute(jnp.tanh(x), "all", ring), x)
        return summed + scattered + swapped + turned, gathered

    spec = PartitionSpec("all")
    mapped = jax.shard_map(body, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    x = jax.ShapeDtypeStruct((8 * 8, 128), jnp.float32, sharding=NamedSharding(mesh, spec))
    found = costs(mapped, x)
    halves = Mesh([jax.devices()[:4], jax.devices()[4:]], ("half", "four"))
    spec = PartitionSpec(("half", "four"))
    summed = jax.shard_map(lambda x: jax.lax.all_gather(x, "four"), mesh=halves, in_specs=spec, out_specs=spec)
    [gather] = costs(summed, jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=NamedSharding(halves, spec)))[
        "collectives"
    ]
    return found | {"groups of four": gather["wire_bytes"] / gather["nbytes"]}


def step(loss_chunks: int) -> dict[str, Any]:
    """Return the costs of a training step of eight devices that split the parameters."""
    config, mesh, batch_size, seq_len = preset("ternary-tiny"), make_mesh(MeshConfig(data=1, fsdp=-1)), 8, 64
    train_step, state = abstract_step(LanguageModel(config), mesh, objective=next_token(loss_chunks))
    with jax.set_mesh(mesh):
        compiled = train_step.lower(state, abstract_batch(mesh, batch_size, seq_len)).compile()
    gains = sum(math.prod(parameter.shape) for parameter in parameters(config) if len(parameter.shape) == 1)
    codes = sum(math.prod(parameter.shape) for parameter in parameters(config) if parameter.storage == "ternary")
    return dataclasses.asdict(hlo_costs(compiled.as_text() or "")) | {
        "model_flops": model_flops(config, batch_size, seq_len),
        # The backward pass recomputes the attention scores.
        "scores": 2 * seq_len * batch_size * seq_len * config.num_layers * config.num_heads * config.head_dim,
        # The gradient of a norm's gain is a product on a CPU.
        "gains": 2 * seq_len * batch_size * gains,
        "forward_flops_of_blocks": 2 * codes * batch_size * seq_len,
        "codes": codes,
    }


if __name__ == "__main__":
    integers = [jax.ShapeDtypeStruct(shape, jnp.int8) for shape in ((64, 128), (128, 256))]
    kernel = floats(6, 5, 3)
    found = {
        "scans": costs(scans, floats(16, 32), floats(3, 32, 32)),
        "until": costs(until, floats(16, 32), floats(32, 32)),
        "int8": costs(int8, *integers),
        "padded convolution": costs(lambda x, k: convolution(x, k, 1), floats(4, 5, 8), kernel),
        "dilated convolution": costs(lambda x, k: convolution(x, k, 2), floats(4, 5, 8), kernel),
        "collectives": collectives(),
        "step": step(loss_chunks=1),
        "step in chunks": step(loss_chunks=4),
    }
    print(json.dumps(found))
