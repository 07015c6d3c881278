"""The training step: a pure function (state, batch, extras) -> (state, metrics), jitted with the state donated."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal, cast

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.dynamic_scale import DynamicScale

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.parameters import parameters
from jaxlm.common.objectives.quantization_course import Phase, QuantizationCourse
from jaxlm.common.ternary_health import health_metrics
from jaxlm.model.language_model import LanguageModel, init_params
from jaxlm.ops.backward_products import step_options
from jaxlm.ops.mixed_linear import with_share
from jaxlm.ops.ternary_linear import Params, TernaryWeight, quantize_params, with_ternary
from jaxlm.training.objectives.next_token import next_token
from jaxlm.training.objectives.objective import Extras, Objective, Sums
from shared_tokenizer.data.batches import Batch

Metrics = dict[str, jax.Array]
TernaryTree = dict[str, TernaryWeight]
# (params, ternary, step, batch) -> sums over the batch. `step` is the number of steps taken.
LossFunction = Callable[[Params, TernaryTree, jax.Array, Batch], Sums]
Step = Callable[["TrainState", Batch, LossFunction], tuple["TrainState", Metrics]]
# The part of the state that is in the memory of the host.
Offload = Literal["optimizer"]
ALL_TERNARY = QuantizationCourse()


class TrainState(flax.struct.PyTreeNode):
    """Everything that a step changes. `ternary` is computed from `params`, so checkpoints leave it out."""

    step: Any
    params: Any
    opt_state: Any
    ternary: Any  # TernaryWeight by dotted path
    loss_scale: Any = None  # DynamicScale, in float16 only

    def optimizer_state(self) -> Any:
        """Return all that a checkpoint holds of a state next to its parameters."""
        return self.opt_state if self.loss_scale is None else {"opt_state": self.opt_state, "scale": self.loss_scale}

    def restored(self, step: Any, params: Params, optimizer_state: Any, ternary: TernaryTree) -> "TrainState":
        """Return the state of a checkpoint that was saved by a run like this one."""
        if self.loss_scale is None:
            return TrainState(step, params, optimizer_state, ternary)
        return TrainState(step, params, optimizer_state["opt_state"], ternary, optimizer_state["scale"])


def init_state(model: LanguageModel, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """Return the state before the first step."""
    params = init_params(model.config, jax.random.key(seed))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        ternary=quantize_params(params, model.config),
        loss_scale=_first_loss_scale() if model.dtype == jnp.float16 else None,
    )


def _first_loss_scale() -> DynamicScale:
    # Gradients are those of a sum over tokens, so they are not as small as those of a mean.
    return DynamicScale(fin_steps=jnp.int32(0), scale=jnp.float32(2**10))  # pyright: ignore[reportArgumentType]


def make_train_step(
    model: LanguageModel,
    optimizer: optax.GradientTransformation,
    learning_rate: optax.Schedule,
    grad_accumulation_steps: int,
    objective: Objective | None = None,
    course: QuantizationCourse = ALL_TERNARY,
    phase: Phase = "ternary",
    out_shardings: Any = None,
    platform: str | None = None,
    offload: Offload | None = None,
) -> jax.stages.Wrapped:
    """Build the step (state, batch, extras): gradients of a batch, the update of the optimizer, and the metrics.

    The gradient is that of the mean loss of the `objective` (by default `next_token`) over all examples of a batch,
    however many micro-batches it is computed in. Weights are ternarised once, after the update, for the next step. The
    step is one of a `phase` of the `course`, see `step_weights`. `learning_rate` is the optimizer's schedule, for the
    metrics. With `offload` the optimizer's moments come from the memory of the host after the gradients are computed,
    and `out_shardings` say that they go back there. On a mesh, `out_shardings` are those of (state, metrics) and
    `platform` is that of its devices. In float16 the loss is scaled (see `with_loss_scale`).
    """
    sums = objective or next_token()

    def train_step(state: TrainState, batch: Batch, summed_loss: LossFunction) -> tuple[TrainState, Metrics]:
        found, grads = accumulate_gradients(summed_loss, state, batch, grad_accumulation_steps)
        if offload is not None:
            # They wait for the gradients: when they come to the device, the activations have left it.
            grads, moments = jax.lax.optimization_barrier((grads, state.opt_state))
            state = state.replace(opt_state=jax.device_put(moments, jax.memory.Space.Device))
        after = apply_update(optimizer, model.config, state, grads)
        return after, step_metrics(model.config, found, grads, learning_rate(state.step), state, after)

    scaled_step = with_loss_scale(train_step) if model.dtype == jnp.float16 else train_step

    def step(state: TrainState, batch: Batch, extras: Extras = None) -> tuple[TrainState, Metrics]:
        def summed_loss(params: Params, ternary: TernaryTree, step: jax.Array, batch: Batch) -> Sums:
            weights = step_weights(params, ternary, course, phase, step, model.backward_dtype)
            return sums(model, weights, batch, extras)

        return scaled_step(state, batch, summed_loss)

    precisions, width = (model.dtype, model.backward_dtype), model.config.hidden_size
    options = step_options(platform or jax.default_backend(), *precisions, width)
    return jax.jit(step, donate_argnums=0, out_shardings=out_shardings, compiler_options=options)


def step_weights(
    params: Params,
    ternary: TernaryTree,
    course: QuantizationCourse,
    phase: Phase,
    step: jax.Array | int,
    backward_dtype: str | None = None,
) -> Params:
    """Return the weights that a step of a phase computes with; `step` counts the steps taken.

    `backward_dtype` is the precision of the gradients' products of ternary matrices (see TernaryWeight).
    """
    if phase == "ternary":
        return with_ternary(params, ternary, backward_dtype)
    share = (step - course.float_steps) / jnp.float32(course.mixed_steps) if phase == "mixed" else None
    return with_share(params, ternary, share, new_norms=course.has_new_norms)


def accumulate_gradients(
    summed_loss: LossFunction, state: TrainState, batch: Batch, micro_batches: int
) -> tuple[Metrics, Params]:
    """Return the means over a batch `[B, L]`, with the loss as "loss", and its gradient, by micro-batches."""

    def loss_and_sums(*arguments: Any) -> tuple[jax.Array, Sums]:
        sums = summed_loss(*arguments)
        return sums.loss, sums

    gradient = partial(jax.value_and_grad(loss_and_sums, has_aux=True), state.params, state.ternary, state.step)

    def value_and_grad(batch: Batch) -> tuple[Sums, Params]:
        (_, sums), grads = gradient(batch)
        return sums, grads

    if micro_batches == 1:
        sums, grads = value_and_grad(batch)
    else:
        stacked = jax.tree.map(lambda rows: _split_rows(rows, micro_batches), batch)
        shapes = jax.eval_shape(value_and_grad, jax.tree.map(lambda rows: rows[0], stacked))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        def add(total, micro_batch):
            return jax.tree.map(jnp.add, total, value_and_grad(micro_batch)), None

        (sums, grads), _ = jax.lax.scan(add, zeros, stacked)
    means = {name: value / sums.num_examples for name, value in {"loss": sums.loss, **sums.metrics}.items()}
    return means, jax.tree.map(lambda grad: grad / sums.num_examples, grads)


def _split_rows(rows: jax.Array, parts: int) -> jax.Array:
    """Return rows `[B, ...]` as `[parts, B / parts, ...]`, every part spread over all devices that hold the rows."""
    return jnp.moveaxis(rows.reshape(-1, parts, *rows.shape[1:]), 1, 0)


def apply_update(
    optimizer: optax.GradientTransformation, config: ModelConfig, state: TrainState, grads: Params
) -> TrainState:
    """Return the state after the optimizer's update, with the weights ternarised for the next step."""
    with jax.named_scope("optimizer"):
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = cast(Params, optax.apply_updates(state.params, updates))
    with jax.named_scope("ternarize"):
        ternary = quantize_params(params, config)
    return TrainState(state.step + 1, params, opt_state, ternary, state.loss_scale)


def step_metrics(
    config: ModelConfig, means: Metrics, grads: Params, learning_rate: Any, before: TrainState, after: TrainState
) -> Metrics:
    """Return the numbers of a step: means over the batch before it, norms, and the health of the codes."""
    return {
        **{f"train/{name}": value for name, value in means.items()},
        "train/grad_norm": optax.tree.norm(grads),
        "train/param_norm": optax.tree.norm(after.params),
        "train/learning_rate": learning_rate,
        **_ternary_health(config, before.ternary, after.ternary),
    }


def _ternary_health(config: ModelConfig, before: TernaryTree, after: TernaryTree) -> Metrics:
    """Return the share of zero codes after a step, and the share of codes that the step changed, whole and by block."""
    if not after:
        return {}
    rows = [row for path in after for row in parameters(config) if ".".join(row.path) == path]
    places = np.array([config.num_layers if row.block is None else row.block for row in rows])
    sizes = np.bincount(places, [row.size for row in rows], config.num_layers + 1).astype(np.float32)
    is_there = places == np.arange(config.num_layers + 1)[:, None]

    def by_place(marks: Iterable[jax.Array]) -> jax.Array:
        """Return the number of marked codes of each block, and last of those outside of blocks, `[blocks + 1]`."""
        # In float32, which XLA for CPUs adds three times as fast as integers. The whole is the sum of these: a second
        # reduction over the codes would compute them anew.
        sums = [jnp.ravel(jnp.sum(marked, axis=(-2, -1), dtype=jnp.float32)) for marked in marks]
        return jnp.sum(jnp.where(is_there, jnp.concatenate(sums), 0), axis=1)

    zeros = by_place(weight.codes == 0 for weight in after.values())
    flips = by_place(before[path].codes != weight.codes for path, weight in after.items())
    return health_metrics(zeros, flips, sizes)


def with_loss_scale(train_step: Step) -> Step:
    """Return a step that multiplies the loss, so that small float16 gradients do not vanish (arXiv 1710.03740).

    All sums are multiplied alike, by a power of two, so the mean loss and its gradient come out as they are. A
    step whose gradient overflows changes nothing but the scale; its gradient norm is reported as 0.
    """

    def step(state: TrainState, batch: Batch, summed_loss: LossFunction) -> tuple[TrainState, Metrics]:
        scale: DynamicScale = state.loss_scale

        def scaled_loss(*arguments: Any) -> Sums:
            return jax.tree.map(lambda value: value * scale.scale, summed_loss(*arguments))

        after, metrics = train_step(state, batch, scaled_loss)
        is_finite = jnp.isfinite(metrics["train/grad_norm"])
        unchanged = state.replace(step=state.step + 1)
        after = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), after, unchanged)
        after = after.replace(loss_scale=_next_loss_scale(scale, is_finite))
        norm = jnp.where(is_finite, metrics["train/grad_norm"], 0)
        return after, metrics | {"train/grad_norm": norm, "train/loss_scale": after.loss_scale.scale}

    return step


def _next_loss_scale(scale: DynamicScale, is_finite: jax.Array) -> DynamicScale:
    """Return half the scale after an overflow, twice the scale after many steps without one."""
    grows = is_finite & (scale.fin_steps == scale.growth_interval)
    factor = jnp.where(is_finite, jnp.where(grows, scale.growth_factor, 1.0), scale.backoff_factor)
    smallest = 0.0 if scale.minimum_scale is None else scale.minimum_scale
    steps = jnp.where(grows | ~is_finite, 0, scale.fin_steps + 1)
    return scale.replace(fin_steps=steps, scale=jnp.maximum(scale.scale * factor, smallest))
