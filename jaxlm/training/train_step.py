"""The training step: a pure function (state, batch) -> (state, metrics), jitted once with the state donated."""

from typing import Any, cast

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax.training.dynamic_scale import DynamicScale

from jaxlm.model.language_model import LanguageModel, init_params
from jaxlm.model.loss import loss_sum
from jaxlm.ops.cpu import compiler_options
from jaxlm.ops.ternary_linear import Params, TernaryWeight, quantize_params, with_ternary
from shared_tokenizer.data.batches import Batch

Metrics = dict[str, jax.Array]


class TrainState(flax.struct.PyTreeNode):
    """Everything a step changes. `ternary` follows from `params`, so checkpoints leave it out."""

    step: Any
    params: Any
    opt_state: Any
    ternary: Any  # TernaryWeight by dotted path
    loss_scale: Any = None  # DynamicScale, in float16 alone

    def optimizer_memory(self) -> Any:
        """All that a checkpoint holds of a state beside its parameters."""
        return self.opt_state if self.loss_scale is None else {"opt_state": self.opt_state, "scale": self.loss_scale}

    def restored(self, step: Any, params: Params, memory: Any, ternary: dict[str, TernaryWeight]) -> "TrainState":
        """The state of a checkpoint of a run like this one."""
        if self.loss_scale is None:
            return TrainState(step, params, memory, ternary)
        return TrainState(step, params, memory["opt_state"], ternary, memory["scale"])


def init_state(model: LanguageModel, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """The state before the first step."""
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
    loss_chunks: int = 0,
    out_shardings: Any = None,
    platform: str | None = None,
) -> jax.stages.Wrapped:
    """Build the step. The gradient is that of the mean loss over all tokens of the batch, however many
    micro-batches it is computed in; weights are ternarised once, after the update, for the next step.
    On a mesh, `out_shardings` are those of (state, metrics) and `platform` is its devices'.

    In float16 the loss is scaled so that small gradients do not vanish, and a step whose gradient overflows changes
    nothing but the scale (arXiv 1710.03740); its gradient norm is given as 0.
    """
    config = model.config

    def micro_loss(params: Params, ternary: dict[str, TernaryWeight], batch: Batch):
        return loss_sum(model, with_ternary(params, ternary), batch, loss_chunks)

    def gradient(scale: Any, state: TrainState, batch: Batch) -> tuple[Any, Any, Any]:
        """The next loss scale, whether the gradient is finite (looked at with a scale only), ((loss, tokens), grads)"""
        if scale is None:
            return None, True, jax.value_and_grad(micro_loss, has_aux=True)(state.params, state.ternary, batch)
        scale, finite, sums, grads = scale.value_and_grad(micro_loss, has_aux=True)(state.params, state.ternary, batch)
        return scale, finite, (sums, grads)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        def accumulate(carry, micro_batch):
            scale, all_finite, total = carry
            scale, finite, found = gradient(scale, state, micro_batch)
            return (scale, all_finite & finite, jax.tree.map(jnp.add, total, found)), None

        if grad_accumulation_steps == 1:
            scale, finite, ((loss, tokens), grads) = gradient(state.loss_scale, state, batch)
        else:
            micro_batches = jax.tree.map(lambda x: _split_rows(x, grad_accumulation_steps), batch)
            first = jax.tree.map(lambda x: x[0], micro_batches)
            shapes = jax.eval_shape(gradient, state.loss_scale, state, first)[2]
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            carry = (state.loss_scale, jnp.array(True), zeros)
            (scale, finite, ((loss, tokens), grads)), _ = jax.lax.scan(accumulate, carry, micro_batches)
        grads = jax.tree.map(lambda g: g / tokens, grads)
        norm = optax.tree.norm(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params: Params = cast(Params, optax.apply_updates(state.params, updates))
        if scale is not None:
            took, stayed = (norm, params, opt_state), (0.0, state.params, state.opt_state)
            norm, params, opt_state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), took, stayed)
        ternary = quantize_params(params, config)
        changes = _count_changes(state.ternary, ternary)
        ternary = _overwriting(ternary, changes)
        metrics = {
            "train/loss": loss / tokens,
            "train/grad_norm": norm,
            "train/param_norm": optax.tree.norm(params),
            "train/learning_rate": learning_rate(state.step),
            **({} if scale is None else {"train/loss_scale": scale.scale}),
            **_ternary_health(ternary, changes),
        }
        return TrainState(state.step + 1, params, opt_state, ternary, scale), metrics

    options = compiler_options(platform or jax.default_backend())
    return jax.jit(train_step, donate_argnums=0, out_shardings=out_shardings, compiler_options=options)


def _split_rows(x: jax.Array, parts: int) -> jax.Array:
    """Rows `[B, ...]` as `[parts, B / parts, ...]`, every part spread over all devices that hold the rows."""
    return jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)


def _count_changes(before: dict[str, TernaryWeight], after: dict[str, TernaryWeight]) -> dict[str, jax.Array]:
    """Codes that a step changed, by matrix; in float32, which XLA for CPUs adds three times as fast as integers."""
    return {name: jnp.sum(before[name].codes != after[name].codes, dtype=jnp.float32) for name in after}


def _overwriting(after: dict[str, TernaryWeight], changes: dict[str, jax.Array]) -> dict[str, TernaryWeight]:
    """`after`, which waits for the count of its changes.

    It takes the donated place of the codes before. Without an order between their last use and the first write, XLA
    copies all of them at the start of a step.
    """
    # A count is never negative, which XLA does not know.
    return {name: weight.replace(codes=weight.codes | (changes[name] < 0)) for name, weight in after.items()}


def _ternary_health(ternary: dict[str, TernaryWeight], changes: dict[str, jax.Array]) -> Metrics:
    """Share of zero codes after a step, and share of codes that the step changed."""
    if not ternary:
        return {}
    count = jnp.float32(sum(weight.codes.size for weight in ternary.values()))
    others = [jnp.sum(jnp.abs(weight.codes), dtype=jnp.float32) for weight in ternary.values()]
    return {
        "ternary/zero_fraction": 1 - jnp.sum(jnp.stack(others)) / count,
        "ternary/flip_rate": jnp.sum(jnp.stack(list(changes.values()))) / count,
    }
