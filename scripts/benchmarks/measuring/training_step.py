"""One training step of a model on made-up tokens, compiled and ready to be timed."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from benchmarks.measuring.candidates import OnDevice

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.run.optimizer_config import OptimizerConfig
from jaxlm.common.step_choices import Remat
from jaxlm.model.language_model import LanguageModel
from jaxlm.ops.attention import choose_kernel
from jaxlm.training.host_allocator import keep_freed_memory, release_freed_memory
from jaxlm.training.objectives.objective import Extras, Objective
from jaxlm.training.optimizer import learning_rate_schedule, make_optimizer
from jaxlm.training.resolve import remat_forms
from jaxlm.training.train_step import init_state, make_train_step
from shared_tokenizer.data.examples import Example


def example_batch(vocab_size: int, batch_size: int, seq_len: int) -> Example:
    """Return a batch of random tokens, one document per row, so that attention needs the causal mask only."""
    shape = (batch_size, seq_len)
    rng = np.random.default_rng(0)
    ids, targets = (rng.integers(0, vocab_size, shape).astype(np.int32) for _ in range(2))
    return Example(
        inputs=ids,
        targets=targets,
        positions=np.broadcast_to(np.arange(seq_len, dtype=np.int32), shape).copy(),
        loss_mask=np.ones(shape, bool),
    )


def compiled_step(
    config: ModelConfig,
    batch_size: int,
    seq_len: int,
    remat: Remat | None = None,
    dtype: str = "float32",
    backward_dtype: str | None = None,
) -> tuple[Any, Any, Example]:
    """Return the compiled step, its state and a batch, with the attention kernel that training takes on this device.

    So it is with gradient checkpointing, where `remat` is None.
    """
    batch = example_batch(config.vocab_size, batch_size, seq_len)
    compiled, state = compiled_objective_step(config, batch, remat=remat, dtype=dtype, backward_dtype=backward_dtype)
    return compiled, state, batch


def compiled_objective_step(
    config: ModelConfig,
    batch: Any,
    objective: Objective | None = None,
    *extras: Extras,
    remat: Remat | None = None,
    dtype: str = "float32",
    backward_dtype: str | None = None,
) -> tuple[Any, Any]:
    """Return the compiled step of an objective, by default plain training, and its state; see `compiled_step`."""
    keep_freed_memory()
    recipe = OptimizerConfig()
    optimizer, schedule = make_optimizer(recipe, 10**6), learning_rate_schedule(recipe, 10**6)
    device = jax.devices()[0]
    kernel = choose_kernel("auto", dtype, config.head_dim, device)
    fastest = remat_forms("auto", config, jnp.dtype(dtype), device)[0]
    unrolled = remat is None and fastest == "none"
    model = LanguageModel(config, jnp.dtype(dtype), unrolled, remat or fastest, kernel, backward_dtype)
    state = jax.jit(lambda: init_state(model, optimizer, 0))()
    step = make_train_step(model, optimizer, schedule, 1, objective)
    return step.lower(state, batch, *extras).compile(), state


def fastest_model(config: ModelConfig) -> LanguageModel:
    """Return a float32 model in the form that trains fastest on this device where memory is not short."""
    remat = remat_forms("auto", config, jnp.float32, jax.devices()[0])[0]
    return LanguageModel(config, unroll_layers=remat == "none", remat=remat)


def training_step(
    config: ModelConfig,
    batch_size: int,
    seq_len: int,
    remat: Remat | None = None,
    dtype: str = "float32",
    backward_dtype: str | None = None,
) -> Callable[[], Any]:
    """Return a function that does one step and waits for its end."""
    compiled, state, batch = compiled_step(config, batch_size, seq_len, remat, dtype, backward_dtype)

    release_freed_memory()
    state, _ = jax.block_until_ready(compiled(state, batch))
    release_freed_memory()

    def step() -> None:
        nonlocal state
        state, metrics = compiled(state, batch)
        jax.block_until_ready(metrics)

    return on_device(step)


def on_device(run: Callable[[], Any]) -> Callable[[], Any]:
    """Return a function that computes on jax's device, whose memory counts where it has its own."""
    device = jax.devices()[0]
    return run if device.platform == "cpu" else OnDevice(run, lambda: device.memory_stats()["peak_bytes_in_use"])
