"""The training step: a pure function (state, batch) -> (state, metrics), jitted once with the state donated."""

from typing import Any, cast

import flax.struct
import jax
import jax.numpy as jnp
import optax

from jaxlm.data import Batch
from jaxlm.loss import loss_sum
from jaxlm.model import LanguageModel, init_params
from jaxlm.spec.config import ModelConfig
from jaxlm.ternary_linear import Params, TernaryWeight, quantize_params, with_ternary

Metrics = dict[str, jax.Array]


class TrainState(flax.struct.PyTreeNode):
    """Everything a step changes. `ternary` follows from `params`, so checkpoints leave it out."""

    step: Any
    params: Any
    opt_state: Any
    ternary: Any  # TernaryWeight by dotted path


def init_state(config: ModelConfig, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """The state before the first step."""
    params = init_params(config, jax.random.key(seed))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        ternary=quantize_params(params, config),
    )


def make_train_step(
    model: LanguageModel,
    optimizer: optax.GradientTransformation,
    learning_rate: optax.Schedule,
    grad_accumulation_steps: int,
    loss_chunks: int = 0,
) -> jax.stages.Wrapped:
    """Build the step. The gradient is that of the mean loss over all tokens of the batch, however many
    micro-batches it is computed in; weights are ternarised once, after the update, for the next step.
    """
    config = model.config

    def micro_loss(params: Params, ternary: dict[str, TernaryWeight], batch: Batch):
        return loss_sum(model, with_ternary(params, ternary), batch, loss_chunks)

    gradient = jax.value_and_grad(micro_loss, has_aux=True)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        def accumulate(total, micro_batch):
            found = gradient(state.params, state.ternary, micro_batch)
            return jax.tree.map(jnp.add, total, found), None

        if grad_accumulation_steps == 1:
            ((loss, tokens), grads) = gradient(state.params, state.ternary, batch)
        else:
            micro_batches = jax.tree.map(lambda x: x.reshape(grad_accumulation_steps, -1, *x.shape[1:]), batch)
            shapes = jax.eval_shape(gradient, state.params, state.ternary, jax.tree.map(lambda x: x[0], micro_batches))
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            ((loss, tokens), grads), _ = jax.lax.scan(accumulate, zeros, micro_batches)
        grads = jax.tree.map(lambda g: g / tokens, grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params: Params = cast(Params, optax.apply_updates(state.params, updates))
        ternary = quantize_params(params, config)
        metrics = {
            "train/loss": loss / tokens,
            "train/grad_norm": optax.tree.norm(grads),
            "train/param_norm": optax.tree.norm(params),
            "train/learning_rate": learning_rate(state.step),
            **ternary_health(state.ternary, ternary),
        }
        return TrainState(state.step + 1, params, opt_state, ternary), metrics

    return jax.jit(train_step, donate_argnums=0)


def ternary_health(before: dict[str, TernaryWeight], after: dict[str, TernaryWeight]) -> Metrics:
    """Share of zero codes after a step, and share of codes that the step changed."""
    if not after:
        return {}
    count = jnp.float32(sum(weight.codes.size for weight in after.values()))
    zeros = [jnp.sum(weight.codes == 0) for weight in after.values()]
    flips = [jnp.sum(before[name].codes != after[name].codes) for name in after]
    return {
        "ternary/zero_fraction": jnp.sum(jnp.stack(zeros)) / count,
        "ternary/flip_rate": jnp.sum(jnp.stack(flips)) / count,
    }
