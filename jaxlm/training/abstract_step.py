"""The training step, its state and its batch as shapes with shardings, to be compiled before anything is allocated."""

from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxlm.common.objectives.quantization_course import Phase, QuantizationCourse
from jaxlm.common.run.optimizer_config import OptimizerConfig
from jaxlm.model.language_model import LanguageModel
from jaxlm.parallel.sharding import batch_sharding, on_host, tree_shardings
from jaxlm.training.objectives.objective import Objective
from jaxlm.training.optimizer import learning_rate_schedule, make_optimizer
from jaxlm.training.train_config import TrainConfig
from jaxlm.training.train_step import ALL_TERNARY, Offload, TrainState, init_state, make_train_step
from shared_tokenizer.data.batches import Batch
from shared_tokenizer.data.examples import Example

_DEFAULT_RECIPE = OptimizerConfig()


def abstract_step(
    model: LanguageModel,
    mesh: Mesh,
    *,
    recipe: OptimizerConfig = _DEFAULT_RECIPE,
    num_train_steps: int = 10**6,
    grad_accumulation_steps: int = 1,
    objective: Objective | None = None,
    course: QuantizationCourse = ALL_TERNARY,
    phase: Phase = "ternary",
    offload: Offload | None = None,
) -> tuple[jax.stages.Wrapped, TrainState]:
    """Return the training step (see `make_train_step`) and the shapes of its state.

    With `offload` the moments of the optimizer are in the memory of the host between two updates.
    """
    optimizer = make_optimizer(recipe, num_train_steps)
    state = jax.eval_shape(lambda: init_state(model, optimizer, 0))
    shardings = tree_shardings(mesh, state)
    if offload is not None:
        shardings = shardings.replace(opt_state=on_host(shardings.opt_state, state.opt_state))
    step = make_train_step(
        model,
        optimizer,
        learning_rate_schedule(recipe, num_train_steps),
        grad_accumulation_steps,
        objective=objective,
        course=course,
        phase=phase,
        # Every process reads the metrics.
        out_shardings=(shardings, NamedSharding(mesh, PartitionSpec())),
        platform=mesh.devices.flat[0].platform,
        offload=offload,
    )
    return step, jax.tree.map(_placed, state, shardings)


def step_of_run(
    config: TrainConfig, model: LanguageModel, mesh: Mesh, objective: Objective, phase: Phase = "ternary"
) -> tuple[jax.stages.Wrapped, TrainState]:
    """Return the training step of a phase of a run whose sizes are chosen, and the shapes of its state."""
    return abstract_step(
        model,
        mesh,
        recipe=config.recipe,
        num_train_steps=config.schedule_steps,
        grad_accumulation_steps=config.grad_accumulation_steps,
        objective=objective,
        course=config.course,
        phase=phase,
        offload=config.offload,
    )


def abstract_batch(mesh: Mesh, batch_size: int, seq_len: int, document_mask: bool = True) -> Batch:
    """Return the shapes of a batch `[B, L]` with shardings."""
    kinds = dict.fromkeys(("inputs", "targets", "positions"), jnp.int32) | {"loss_mask": jnp.bool_}
    if document_mask:
        kinds["segment_ids"] = jnp.int32
    example: Any = {name: jax.ShapeDtypeStruct((seq_len,), kind) for name, kind in kinds.items()}
    return batch_of(mesh, batch_size, example)


def batch_of(mesh: Mesh, batch_size: int, example: Example) -> Batch:
    """Return the shapes of a batch of examples like this one, `[B, L, ...]`, with shardings."""
    sharding, arrays = batch_sharding(mesh), dict(example)
    batch: Any = {
        name: jax.ShapeDtypeStruct((batch_size, *array.shape), array.dtype, sharding=sharding)
        for name, array in cast(dict[str, Any], arrays).items()
    }
    return batch


def with_shardings(mesh: Mesh, tree: Any) -> Any:
    """Return the shapes of a tree of parameters, or of trees that contain them, with shardings."""
    return jax.tree.map(_placed, tree, tree_shardings(mesh, tree))


def _placed(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
