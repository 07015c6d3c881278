"""A comparison of two models: ternary codes and scales one by one, floats, and logits on the same tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.checkpoints.weights import Weights, ternary_weights
from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.parameters import Parameter, parameters
from jaxlm.common.architecture.ternary import largest_of_tiles, quantize_rows, spread
from jaxlm.conversion.streamed_logits import streamed_logits
from jaxlm.model.layers import QuantizedRows
from jaxlm.ops.ternary_linear import TernaryWeight

PROBE_TOKENS = 64


@dataclass(frozen=True)
class WeightComparison:
    """Counts and differences of the weights of two models."""

    ternary_codes: int = 0
    """Codes compared. The compiled function of training quantizes latent weights first."""
    codes_differing: int = 0
    scales_differing: int = 0
    scales_max_difference: float = 0.0
    """Largest difference of a scale, relative to the first model's scale."""
    floats: int = 0
    """Floats compared: norms, embeddings, dense weights, and latent weights where both models have them."""
    floats_differing: int = 0
    floats_max_difference: float = 0.0

    def __add__(self, other: "WeightComparison") -> "WeightComparison":
        return WeightComparison(
            self.ternary_codes + other.ternary_codes,
            self.codes_differing + other.codes_differing,
            self.scales_differing + other.scales_differing,
            max(self.scales_max_difference, other.scales_max_difference),
            self.floats + other.floats,
            self.floats_differing + other.floats_differing,
            max(self.floats_max_difference, other.floats_max_difference),
        )


@dataclass(frozen=True)
class LogitComparison:
    """Differences of the float32 logits of two models on `probe_tokens`."""

    max_difference: float
    mean_difference: float
    kl_divergence: float
    """Mean over positions of KL(first || second), in nats."""
    top1_agreement: float
    """Share of positions with the same most likely token, from 0 to 1."""


def compare_weights(
    config: ModelConfig, weights: Weights, other_config: ModelConfig, other_weights: Weights
) -> WeightComparison:
    """Return the comparison of two models of the same shape, one weight of each in memory at a time.

    Where one model is dense and holds `scale * codes` as floats, its codes and scale are compared. Raises ValueError
    where the shapes differ.
    """
    table, other_table = _by_position(config), _by_position(other_config)
    _check_shapes(table, other_table)
    quantized, other_quantized = ternary_weights(weights, config), ternary_weights(other_weights, other_config)
    total = WeightComparison()
    for position, parameter in table.items():
        other = other_table[position]
        if "ternary" in (parameter.storage, other.storage):
            pair = quantized(parameter), other_quantized(other)
            total += _compare_codes(_as_ternary(pair[0], pair[1]), _as_ternary(pair[1], pair[0]))
        if parameter.storage != other.storage:
            continue
        ours, theirs = weights(parameter), other_weights(other)
        if TernaryWeight not in (type(ours), type(theirs)):
            total += _compare_floats(_float_form(ours, parameter), _float_form(theirs, other))
    return total


def probe_tokens(config: ModelConfig) -> np.ndarray:
    """Return the fixed token ids `[1, L]` that logits are compared on."""
    length = min(PROBE_TOKENS, config.max_seq_len)
    return np.random.default_rng(0).integers(0, config.vocab_size, (1, length))


def probe_logits(config: ModelConfig, weights: Weights) -> np.ndarray:
    """Return the logits `[1, L, V]` of `probe_tokens`."""
    return streamed_logits(config, weights, probe_tokens(config))


def compare_logits(logits: np.ndarray, other: np.ndarray) -> LogitComparison:
    """Return the comparison of logits `[1, L, V]` of two models."""
    log_p, log_q = jax.nn.log_softmax(logits), jax.nn.log_softmax(other)
    difference = np.abs(logits - other)
    return LogitComparison(
        max_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        kl_divergence=float(jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1))),
        top1_agreement=float(np.mean(logits.argmax(-1) == other.argmax(-1))),
    )


# Path and layer of a parameter. Names differ between formats.
Position = tuple[tuple[str, ...], int | None]


def _by_position(config: ModelConfig) -> dict[Position, Parameter]:
    return {(parameter.path, parameter.layer): parameter for parameter in parameters(config)}


def _check_shapes(first: Mapping[Position, Parameter], second: Mapping[Position, Parameter]) -> None:
    for position in (*first, *second):
        shapes = [list(each[position].shape) if position in each else "none" for each in (first, second)]
        if shapes[0] != shapes[1]:
            path = ".".join(position[0])
            raise ValueError(
                f"models of different shapes: {path}: found {shapes[0]} in the first and {shapes[1]} in the second"
            )


def _as_ternary(weight: Any, other: Any) -> TernaryWeight:
    """Return a ternary weight as it is, or the codes of floats `codes * scales` with the scales' grid of the other one.

    A float that is no code has the code 2. Where all floats of a scale are 0 it is not known, and is that of the other.
    """
    if isinstance(weight, TernaryWeight):
        return weight
    largest = largest_of_tiles(weight, other.scale.shape, np)
    scale = np.where(largest == 0, other.scale, largest)
    # A comparison, because a division may round.
    is_code = (weight == 0) | (np.abs(weight) == spread(scale, weight.shape, np))
    return other.replace(codes=np.where(is_code, np.sign(weight), 2).astype(np.int8), scale=scale)


def _float_form(weight: Any, parameter: Parameter) -> np.ndarray | jax.Array:
    """Return a weight as floats. An int8 table is dequantized, and a latent one quantized first."""
    if parameter.storage == "int8" and not isinstance(weight, QuantizedRows):
        weight = QuantizedRows(*quantize_rows(jnp.asarray(weight), jnp))
    return weight.codes * weight.scale if isinstance(weight, QuantizedRows) else weight


def _compare_codes(ours: TernaryWeight, theirs: TernaryWeight) -> WeightComparison:
    ours_scale, theirs_scale = _on_one_grid(ours, theirs)
    # A scale of zeros multiplies nothing.
    used = (largest_of_tiles(each.codes, ours_scale.shape, np) > 0 for each in (ours, theirs))
    is_used = np.logical_or(*used)
    relative = np.abs(theirs_scale[is_used] / ours_scale[is_used] - 1)
    return WeightComparison(
        ternary_codes=ours.codes.size,
        codes_differing=int(np.count_nonzero(ours.codes != theirs.codes)),
        scales_differing=int(np.count_nonzero(relative)),
        scales_max_difference=float(relative.max(initial=0.0)),
    )


def _on_one_grid(ours: TernaryWeight, theirs: TernaryWeight) -> tuple[np.ndarray, np.ndarray]:
    """Return the scales of both models on one grid; a form may have more of them, which are equal then."""
    pair = np.asarray(ours.scale), np.asarray(theirs.scale)
    if pair[0].shape == pair[1].shape:
        return pair
    grid = len(ours.codes), max(scale.shape[1] for scale in pair)
    first, second = (np.broadcast_to(spread(scale, grid, np), grid) for scale in pair)
    return first, second


def _compare_floats(ours: np.ndarray | jax.Array, theirs: np.ndarray | jax.Array) -> WeightComparison:
    differing, largest = _difference(ours, theirs)
    return WeightComparison(floats=ours.size, floats_differing=int(differing), floats_max_difference=float(largest))


@jax.jit  # one compiled program holds no array of differences
def _difference(ours: jax.Array, theirs: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.sum(ours != theirs), jnp.max(jnp.abs(ours - theirs))
