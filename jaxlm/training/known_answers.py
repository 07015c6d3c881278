"""The known-answer test: the parts of a training step on the device that will train, compared with numpy.

A compiler can be wrong without an error (see `jaxlm.ops.machine.xla_flags`), and a wrong kernel trains a wrong model.
The arrays are small, but large enough to take the paths of training: several tiles of attention, several chunks of the
loss, few and many rows of int8 products.
"""

import functools
import importlib.metadata
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.ternary import TernaryForm, quantize_activation
from jaxlm.common.known_answers import references
from jaxlm.common.known_answers.comparison import Answer, check_answers
from jaxlm.common.run.optimizer_config import OptimizerConfig
from jaxlm.common.step_choices import AttentionKernel
from jaxlm.model.language_model import Block
from jaxlm.model.mixers import Context
from jaxlm.ops.attention import causal_attention
from jaxlm.ops.cross_entropy import cross_entropy_sum
from jaxlm.ops.int8_product import int8_product
from jaxlm.ops.linear_recurrence import linear_recurrence
from jaxlm.ops.machine.cpu import onednn_options
from jaxlm.ops.machine.xla_flags import NO_FUSED_REDUCTIONS, XLA_FLAGS
from jaxlm.ops.ternary_linear import ternarize_weight, ternary_linear
from jaxlm.parallel.mesh import make_mesh
from jaxlm.parallel.mesh_config import MeshConfig
from jaxlm.training.optimizer import make_optimizer

# Differences that rounding explains. Accelerators multiply float32 in fewer bits.
_TOLERANCES = {"float32": 1e-5, "float16": 4e-3, "bfloat16": 2e-2}
_RECIPE = OptimizerConfig(learning_rate=1e-2, warmup_steps=0, schedule="linear")
_RECIPE_STEPS = 10
_BLOCK = ModelConfig(vocab_size=8, hidden_size=64, intermediate_size=96, num_layers=1, num_heads=4, num_kv_heads=2)
_BLOCK_TOKENS = 32
_DIRECTIONS = 2

_THREADS = 4

Run = Callable[..., Any]
Part = Callable[[], Iterator[Answer]]


@functools.cache
def check_known_answers(
    device: Any, dtype: Any, kernel: AttentionKernel, backward_dtype: str | None = None, *, has_onednn: bool = True
) -> int:
    """Compare the parts of a training step with numpy's, in the precisions and with the attention kernel of a run.

    They are compiled with the options for oneDNN's products where the run's step is and the processor has them.

    Returns the number of arrays that were compared. Raises WrongAnswerError (a ValueError), which names the parts that
    are wrong, the version of jaxlib and the way out. A process checks each combination once.
    """
    dtype = jnp.dtype(dtype)
    mesh = make_mesh(MeshConfig(), [device])

    def answers(part: Part) -> list[Answer]:
        with jax.set_mesh(mesh):  # a thread has a mesh of its own
            return list(part())

    # Together, because compiling takes nearly all of the time, mostly on one core.
    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(answers, parts(mesh, dtype, kernel, backward_dtype, has_onednn=has_onednn).values()))
    name = f"jaxlib {importlib.metadata.version('jaxlib')} on {device.device_kind} in {dtype.name}"
    return check_answers(itertools.chain.from_iterable(found), name, _remedy(device.platform))


def _remedy(platform: str) -> str:
    if platform != "cpu":
        return "Do not train with it: install another version of jax and jaxlib, or train on another device"
    return (
        f"Do not train with it: set XLA_FLAGS=--{NO_FUSED_REDUCTIONS}={XLA_FLAGS[NO_FUSED_REDUCTIONS]} before Python "
        "starts (it is set by importing jaxlm before the first computation of JAX), or install another version of jax "
        "and jaxlib"
    )


def parts(
    mesh: Mesh, dtype: Any, kernel: AttentionKernel, backward_dtype: str | None = None, *, has_onednn: bool = True
) -> dict[str, Part]:
    """Return the parts by name, those that take longest first. Each is to be called in the mesh, of one device."""
    platform = mesh.devices.flat[0].platform
    run = partial(_run, mesh, (onednn_options(platform) if has_onednn else None) or None)
    tolerance = _TOLERANCES[dtype.name if platform == "cpu" or dtype.itemsize == 2 else "bfloat16"]
    return {
        "dense block": partial(_dense_block, run, dtype, tolerance, kernel),
        "attention": partial(_attention, run, dtype, tolerance, kernel),
        "loss": partial(_loss, run, dtype, tolerance, backward_dtype),
        "ternary layer": partial(_ternary_layer, run, dtype, tolerance, backward_dtype),
        "linear recurrence": partial(_recurrence, run),
        "optimizer step": partial(_optimizer, run),
        # Without options, as programs other than the training step are compiled.
        "product with a sum": partial(_products_with_sums, partial(_run, mesh, None)),
    }


def _run(mesh: Mesh, options: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a compiled function computes of arrays, all on the one device of a mesh."""
    placed = jax.device_put(arguments, NamedSharding(mesh, PartitionSpec()))
    return jax.tree.map(np.asarray, jax.jit(function, compiler_options=options)(*placed))


def _products_with_sums(run: Run) -> Iterator[Answer]:
    """Yield products with a constant that are summed, and norms of many transformed rows; all are exact integers."""
    rng = np.random.default_rng(0)
    x, rows = rng.integers(-8, 8, (1000, 16)).astype(np.float32), rng.integers(-8, 8, (33_000, 3)).astype(np.float32)
    constant, rotation = np.full((16, 16), 2.0), np.eye(3)[[2, 0, 1]]

    def all_sums(x: Any, factor: Any, rows: Any, rotation: Any) -> Any:
        product = x @ jnp.full((16, 16), factor)
        norms = jax.vmap(lambda row: jnp.sum(jnp.square(rotation @ row)))(rows)
        return jnp.sum(x @ jnp.full((16, 16), 2.0)), jnp.sum(product, axis=1), jnp.sum(product**2, axis=-1), norms

    expected = x @ constant
    right = expected.sum(), expected.sum(axis=1), (expected**2).sum(axis=1), (rows**2).sum(axis=1)
    found = run(all_sums, x, np.float32(2), rows, rotation.astype(np.float32))
    for name, array, expected in zip(
        ("sum", "row sums", "squared norms", "norms of many rows"), found, right, strict=True
    ):
        yield Answer("product with a sum", name, array, expected)


def _ternary_layer(run: Run, dtype: Any, tolerance: float, backward_dtype: str | None) -> Iterator[Answer]:
    """Yield a ternary layer and its gradients; its integers, for few rows too, are exact."""
    rng = np.random.default_rng(1)
    # Far from the ties of rounding, whose side is a matter of the last bit.
    steps = rng.integers(-126, 127, (130, 192)) + rng.uniform(-0.2, 0.2, (130, 192))
    steps[:, 0] = 127
    x = (steps / 127).astype(dtype)
    latent = (rng.standard_normal((96, 192)) * 0.05).astype(np.float32)
    dy = rng.standard_normal((130, 96)).astype(dtype)

    def layer(x: Any, latent: Any, dy: Any) -> Any:
        weight = ternarize_weight(latent, TernaryForm())
        integers, _ = quantize_activation(x, jnp)
        product = int8_product(integers.astype(jnp.int8), weight.codes)
        of_few = int8_product(integers[:3].astype(jnp.int8), weight.codes)
        with_latent = partial(weight.replace, backward_dtype=backward_dtype)
        y, gradients = jax.vjp(lambda x, latent: ternary_linear(x, with_latent(latent=latent)), x, latent)
        return (weight.codes, weight.scale, integers, product, y, *gradients(dy)), of_few

    right = references.ternary_linear(x.astype(np.float32), latent, dy.astype(np.float64))
    found, of_few = run(layer, x, latent, dy)
    exact = {"codes", "weight scale", "int8 activations", "int8 product"}
    for (name, expected), each in zip(right.items(), found, strict=True):
        allowed = _TOLERANCES[backward_dtype] if backward_dtype and name in ("dx", "dW") else tolerance
        yield Answer("ternary layer", name, each, expected, 0 if name in exact else allowed)
    yield Answer("ternary layer", "int8 product of 3 rows", of_few, right["int8 product"][:3])


def _loss(run: Run, dtype: Any, tolerance: float, backward_dtype: str | None) -> Iterator[Answer]:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((2, 64, 48)).astype(dtype)
    weight = rng.standard_normal((320, 48)).astype(dtype).astype(np.float32)
    targets = rng.integers(0, 320, (2, 64)).astype(np.int32)
    mask = rng.random((2, 64)) < 0.8

    def nats(x: Any, weight: Any, targets: Any, mask: Any) -> Any:
        return cross_entropy_sum(x, weight, targets, mask, chunks=2, name="lm_head", backward_dtype=backward_dtype)[0]

    found, gradients = run(jax.value_and_grad(nats, argnums=(0, 1)), x, weight, targets, mask)
    arguments = x.astype(np.float64).reshape(-1, 48), weight.astype(np.float64), targets.ravel(), mask.ravel()
    right = references.cross_entropy(*arguments)
    found = found, gradients[0].reshape(-1, 48), gradients[1]
    for name, array, expected in zip(
        ("nats", "gradient of its input", "gradient of the head"), found, right, strict=True
    ):
        allowed = _TOLERANCES[backward_dtype] if backward_dtype and "gradient" in name else tolerance
        yield Answer("loss", name, array, expected, allowed)


def _attention(run: Run, dtype: Any, tolerance: float, kernel: AttentionKernel) -> Iterator[Answer]:
    rng = np.random.default_rng(3)
    queries, keys, values, d_output = (rng.standard_normal((1, 128, heads, 32)).astype(dtype) for heads in (4, 2, 2, 4))
    segment_ids = np.repeat([[0, 1]], [50, 78], axis=1).astype(np.int32)

    def attend(queries: Any, keys: Any, values: Any, segment_ids: Any, d_output: Any) -> Any:
        output, gradients = jax.vjp(
            lambda queries, keys, values: causal_attention(queries, keys, values, segment_ids, kernel),
            queries,
            keys,
            values,
        )
        return output, *gradients(d_output)

    q, k, v, do = (array.astype(np.float64) for array in (queries, keys, values, d_output))
    right = references.attention(q, k, v, segment_ids)[0], *references.attention_gradients(q, k, v, segment_ids, do)
    found = run(attend, queries, keys, values, segment_ids, d_output)
    names = ("output", "gradient of queries", "gradient of keys", "gradient of values")
    for name, array, expected in zip(names, found, right, strict=True):
        yield Answer("attention", name, array, expected, tolerance)


def _recurrence(run: Run) -> Iterator[Answer]:
    rng = np.random.default_rng(4)
    decays = rng.uniform(0.5, 1, (2, 70, 48)).astype(np.float32)
    updates, d_states = rng.standard_normal((2, 2, 70, 48)).astype(np.float32)
    initial = rng.standard_normal((2, 48)).astype(np.float32)

    def states(decays: Any, updates: Any, initial: Any, d_states: Any) -> Any:
        found, gradients = jax.vjp(linear_recurrence, decays, updates, initial)
        return found, *gradients(d_states)

    arguments = [array.astype(np.float64) for array in (decays, updates, initial, d_states)]
    right = references.recurrence(*arguments[:3]), *references.recurrence_gradients(*arguments)
    found = run(states, decays, updates, initial, d_states)
    for name, array, expected in zip(("states", "d decays", "d updates", "d initial"), found, right, strict=True):
        yield Answer("linear recurrence", name, array, expected, _TOLERANCES["float32"])


def _dense_block(run: Run, dtype: Any, tolerance: float, kernel: AttentionKernel) -> Iterator[Answer]:
    """Yield the output of a block, and its gradients along random directions, by central differences of numpy's."""
    rng = np.random.default_rng(5)
    config, length = _BLOCK, _BLOCK_TOKENS
    x, dy = rng.standard_normal((2, 1, length, config.hidden_size)).astype(dtype)
    variables = jax.eval_shape(
        lambda x: Block(config, "attention").init(jax.random.key(0), x, _context(length, "xla"))["params"], x
    )
    params = jax.tree.map(
        lambda leaf: (rng.standard_normal(leaf.shape) * leaf.shape[-1] ** -0.5).astype(dtype).astype(np.float32),
        variables,
    )

    def block(x: Any, params: Any, dy: Any) -> Any:
        def output(x: Any, params: Any) -> Any:
            return Block(config, "attention").apply({"params": params}, x, _context(length, kernel))[0]  # pyright: ignore

        y, gradients = jax.vjp(output, x, params)
        return y, *gradients(dy)

    y, dx, gradients = run(block, x, params, dy)
    right = _by_layer(params) | {"x": x.astype(np.float64)}
    found = _by_layer(gradients) | {"x": dx.astype(np.float64)}

    def reference(arrays: dict[str, Any]) -> Any:
        weights = {name: array for name, array in arrays.items() if name != "x"}
        return references.dense_block(arrays["x"], weights, config.num_heads, config.rope_theta, config.norm_eps)

    yield Answer("dense block", "output", y, reference(right), tolerance)
    for name in right:
        directions = rng.choice([-1.0, 1.0], (_DIRECTIONS, *right[name].shape))
        slopes = [_slope(reference, right, name, direction, dy.astype(np.float64)) for direction in directions]
        along = [(found[name] * direction).sum() for direction in directions]
        yield Answer("dense block", f"gradient of {name}", along, slopes, 2 * tolerance)


def _context(length: int, kernel: AttentionKernel) -> Context:
    positions = jnp.arange(length)[None]
    return Context(positions, positions == 0, attention=kernel)


def _by_layer(tree: Any) -> dict[str, Any]:
    """Return the weights of a block in float64, by the name of their layer."""
    leaves = jax.tree.leaves_with_path(tree)
    return {path[-2].key: np.asarray(leaf, np.float64) for path, leaf in leaves}


def _slope(function: Run, arrays: dict[str, Any], name: str, direction: Any, dy: Any, step: float = 1e-5) -> float:
    """Return the derivative of sum(function * dy) by one array along a direction."""
    high, low = (function(arrays | {name: arrays[name] + sign * step * direction}) for sign in (1, -1))
    return float(((high - low) * dy).sum() / (2 * step))


def _optimizer(run: Run) -> Iterator[Answer]:
    """Yield parameters after two steps of AdamW, the second with a gradient that is clipped."""
    rng = np.random.default_rng(6)
    params = {"weight": rng.standard_normal((96, 64)), "norm": rng.standard_normal(64)}
    params = {name: array.astype(np.float32) for name, array in params.items()}
    gradients = [
        {name: (scale * rng.standard_normal(array.shape)).astype(np.float32) for name, array in params.items()}
        for scale in (0.001, 1)
    ]

    def steps(params: Any, gradients: Any) -> Any:
        optimizer = make_optimizer(_RECIPE, _RECIPE_STEPS)
        state = optimizer.init(params)
        for gradient in gradients:
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        return params

    found = run(steps, params, gradients)
    norms = [
        float(np.sqrt(sum((array.astype(np.float64) ** 2).sum() for array in each.values()))) for each in gradients
    ]
    slope = (1 - _RECIPE.final_fraction) / _RECIPE_STEPS
    rates = [_RECIPE.learning_rate * (1 - step * slope) for step in range(len(gradients))]
    for name, parameter in params.items():
        decay = _RECIPE.weight_decay if name == "weight" else 0.0
        by_step = [gradient[name].astype(np.float64) for gradient in gradients]
        right = references.adamw(parameter.astype(np.float64), by_step, norms, rates, decay, _RECIPE)
        yield Answer("optimizer step", name, found[name], right, _TOLERANCES["float32"])
