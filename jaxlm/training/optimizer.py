"""Learning-rate schedules, AdamW and Muon, in optax."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import path_aware_map
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from jaxlm.common.architecture.parameters import is_block_matrix, is_decayed
from jaxlm.common.run.optimizer_config import (
    MUON_RMS,
    NEWTON_SCHULZ_STEPS,
    OptimizerConfig,
    Piece,
    learning_rate_pieces,
    weight_decay_end,
)


def learning_rate_schedule(config: OptimizerConfig, num_train_steps: int) -> optax.Schedule:
    """Return the learning rate as a function of the step. Raises ValueError where the warm-up leaves no step."""
    pieces = learning_rate_pieces(config, num_train_steps)
    return optax.join_schedules([_schedule(piece) for piece in pieces], [piece.begin for piece in pieces[1:]])


def _schedule(piece: Piece) -> optax.Schedule:
    if piece.shape == "cosine":
        return optax.cosine_decay_schedule(piece.start, piece.steps, alpha=piece.end / piece.start)
    return optax.linear_schedule(piece.start, piece.end, piece.steps)


def weight_decay_schedule(config: OptimizerConfig, num_train_steps: int) -> optax.ScalarOrSchedule:
    """Return the weight decay, a number or a function of the step."""
    end = weight_decay_end(config, num_train_steps)
    if end is None:
        return config.weight_decay
    return lambda step: jnp.where(jnp.asarray(step) < end, config.weight_decay, 0.0)


def decay_mask(params: Any) -> Any:
    """Return a tree of bools: True for the leaves that are decayed."""
    return path_aware_map(lambda path, _: is_decayed(map(str, path)), params)


def make_optimizer(config: OptimizerConfig, num_train_steps: int) -> optax.GradientTransformation:
    """Return AdamW (arXiv 1711.05101), or Muon for the matrices of blocks, behind a clip of the global norm."""
    learning_rate = learning_rate_schedule(config, num_train_steps)
    weight_decay = weight_decay_schedule(config, num_train_steps)
    optimizer = optax.adamw(
        learning_rate,
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        mu_dtype=config.first_moment_dtype,
        weight_decay=weight_decay,
        mask=decay_mask,
    )
    if config.name == "muon":
        muon = optax.chain(
            scale_by_muon(
                ns_steps=NEWTON_SCHULZ_STEPS,
                beta=config.momentum,
                mu_dtype=config.first_moment_dtype,
                weight_dimension_numbers=_dimension_numbers,
            ),
            optax.stateless_with_tree_map(_scaled),
            optax.add_decayed_weights(weight_decay),
            optax.scale_by_learning_rate(learning_rate),
        )
        optimizer = optax.partition({"muon": muon, "adamw": optimizer}, _labels)
    if config.grad_clip_norm == 0:
        return optimizer
    return optax.chain(optax.clip_by_global_norm(config.grad_clip_norm), optimizer)


def _scaled(orthogonal: Any, _: Any) -> jax.Array:
    return MUON_RMS * math.sqrt(max(orthogonal.shape[-2:])) * orthogonal


def _labels(params: Any) -> Any:
    return path_aware_map(lambda path, _: "muon" if is_block_matrix(map(str, path)) else "adamw", params)


def _dimension_numbers(matrices: Any) -> Any:
    """Return the axes of every matrix `[..., O, I]`; each of a stack is orthogonalized by itself."""
    return jax.tree.map(lambda _: MuonDimensionNumbers(reduction_axis=-1, output_axis=-2), matrices)
