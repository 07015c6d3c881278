"""Two models compared: ternary codes and scales one by one, floats, and logits on the same tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.layers import QuantizedRows
from jaxlm.model import LanguageModel
from jaxlm.spec.config import ModelConfig
from jaxlm.spec.names import Storage, parameters
from jaxlm.spec.ternary import quantize_rows
from jaxlm.ternary_linear import Params, TernaryWeight, ternarize, ternarize_weight

PROBE_TOKENS = 64


@dataclass(frozen=True)
class WeightComparison:
    """What the weights of two models have in common."""

    ternary_codes: int = 0
    """Codes compared; latent weights are quantized by the training program's own compiled function."""
    codes_differing: int = 0
    scales_differing: int = 0
    scales_max_difference: float = 0.0
    """Relative to the first model's scale."""
    floats: int = 0
    """Numbers compared that are not codes: norms, embeddings, dense weights, and latent ones where both sides have
    them."""
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
    """What the logits of two models have in common, on `probe_tokens` in float32."""

    max_difference: float
    mean_difference: float
    kl_divergence: float
    """Mean over positions of KL(first || second), in nats."""
    top1_agreement: float
    """Share of positions with the same likeliest token."""


def compare_weights(
    config: ModelConfig, leaves: Mapping[str, Any], other_config: ModelConfig, other_leaves: Mapping[str, Any]
) -> WeightComparison:
    """Compare two models of the same shape, given by the leaves of their parameter trees by dotted path.

    One leaf of each is looked at at a time. Where one side holds ternary weights as floats of a dense model, they count
    as the codes and scale that they are. Raises ValueError where the shapes differ.
    """
    _check_shapes(config, other_config)
    storage, other_storage = _storage(config), _storage(other_config)
    total = WeightComparison()
    for path, stored in storage.items():
        ours, theirs, other = leaves[path], other_leaves[path], other_storage[path]
        if "ternary" in (stored, other):
            total += _compare_codes(_ternary_form(ours, stored, config), _ternary_form(theirs, other, other_config))
        if stored == other and TernaryWeight not in (type(ours), type(theirs)):
            total += _compare_floats(_float_form(ours, stored), _float_form(theirs, other))
    return total


def probe_tokens(config: ModelConfig) -> np.ndarray:
    """The fixed sequence `[1, L]` that logits are compared on."""
    length = min(PROBE_TOKENS, config.max_seq_len)
    return np.random.default_rng(0).integers(0, config.vocab_size, (1, length))


def probe_logits(config: ModelConfig, params: Params) -> np.ndarray:
    """Logits `[1, L, V]` of `probe_tokens`."""
    apply = jax.jit(LanguageModel(config).apply)
    return np.asarray(apply({"params": ternarize(params, config)}, probe_tokens(config)))


def compare_logits(logits: np.ndarray, other: np.ndarray) -> LogitComparison:
    """Compare logits `[1, L, V]` of two models."""
    log_p, log_q = jax.nn.log_softmax(logits), jax.nn.log_softmax(other)
    difference = np.abs(logits - other)
    return LogitComparison(
        max_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        kl_divergence=float(jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1))),
        top1_agreement=float(np.mean(logits.argmax(-1) == other.argmax(-1))),
    )


def _check_shapes(config: ModelConfig, other: ModelConfig) -> None:
    ours, theirs = ({(p.path, p.layer): p.shape for p in parameters(each)} for each in (config, other))
    for place in (*ours, *theirs):
        if ours.get(place) != theirs.get(place):
            path = ".".join(place[0])
            found = [str(list(each[place])) if place in each else "none" for each in (ours, theirs)]
            raise ValueError(f"models of different shapes: {path}: found {found[0]} here and {found[1]} there")


def _storage(config: ModelConfig) -> dict[str, Storage]:
    return {".".join(parameter.path): parameter.storage for parameter in parameters(config)}


def _ternary_form(leaf: Any, storage: Storage, config: ModelConfig) -> TernaryWeight:
    if isinstance(leaf, TernaryWeight):
        return leaf
    if storage != "ternary":
        return _as_ternary(leaf)
    return jax.jit(ternarize_weight, static_argnums=1)(leaf, config.scale_dtype)


def _as_ternary(weight: jax.Array) -> TernaryWeight:
    """Floats that should be `codes * scale`; where they are not, some code is none of the three."""
    scale = jnp.max(jnp.abs(weight), axis=(-2, -1))
    # Compared, not divided: a compiler may divide by multiplying with a rounded reciprocal.
    is_code = (weight == 0) | (jnp.abs(weight) == scale[..., None, None])
    return TernaryWeight(jnp.where(is_code, jnp.sign(weight), 2).astype(jnp.int8), scale)


def _float_form(leaf: Any, storage: Storage) -> jax.Array:
    """A leaf as floats; a table that is quantized by row as those that it stands for."""
    if storage == "int8" and not isinstance(leaf, QuantizedRows):
        leaf = QuantizedRows(*quantize_rows(leaf, jnp))
    return leaf.codes * leaf.scale if isinstance(leaf, QuantizedRows) else leaf


def _compare_codes(ours: TernaryWeight, theirs: TernaryWeight) -> WeightComparison:
    return WeightComparison(
        ternary_codes=ours.codes.size,
        codes_differing=int(jnp.sum(ours.codes != theirs.codes)),
        scales_differing=int(jnp.sum(ours.scale != theirs.scale)),
        scales_max_difference=float(jnp.max(jnp.abs(theirs.scale / ours.scale - 1))),
    )


def _compare_floats(ours: jax.Array, theirs: jax.Array) -> WeightComparison:
    differing, largest = _difference(ours, theirs)
    return WeightComparison(floats=ours.size, floats_differing=int(differing), floats_max_difference=float(largest))


@jax.jit  # as one program, which keeps no array of differences
def _difference(ours: jax.Array, theirs: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.sum(ours != theirs), jnp.max(jnp.abs(ours - theirs))
