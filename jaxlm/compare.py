"""Two models compared: ternary codes and scales one by one, floats, and logits on the same tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from jaxlm.layers import QuantizedRows
from jaxlm.model import LanguageModel
from jaxlm.spec.config import ModelConfig
from jaxlm.spec.ternary import quantize_rows
from jaxlm.ternary_linear import Params, TernaryWeight, quantize_params, ternarize

PROBE_TOKENS = 64


@dataclass(frozen=True)
class Comparison:
    """What two models have in common."""

    ternary_codes: int
    """Codes compared; latent weights are quantized by the training program's own compiled function."""
    codes_differing: int
    scales_differing: int
    scales_max_difference: float
    """Relative to the first model's scale."""
    floats: int
    """Numbers compared that are not codes: norms, embeddings, dense weights, and latent ones where both sides have
    them."""
    floats_differing: int
    floats_max_difference: float
    logits_max_difference: float
    """On a fixed sequence, in float32."""
    logits_mean_difference: float
    kl_divergence: float
    """Mean over positions of KL(first || second), in nats."""
    top1_agreement: float
    """Share of positions with the same likeliest token."""


def compare_models(
    config: ModelConfig,
    params: Params,
    other_config: ModelConfig,
    other_params: Params,
    other_logits: np.ndarray | None = None,
) -> Comparison:
    """Compare two models of the same shape. `other_logits` `[1, L, V]` on `probe_tokens` are those that another program
    computed from the second; without them JAX computes both.

    Where one side holds ternary weights as floats of a dense model, they count as the codes and scale that they are.
    Raises ValueError where the shapes differ.
    """
    ours, theirs = _leaves(params, config), _leaves(other_params, other_config)
    _check_shapes(ours, theirs)
    our_codes, their_codes = _ternary_leaves(params, config), _ternary_leaves(other_params, other_config)
    ternary = sorted(set(our_codes) | set(their_codes))
    pairs = [(our_codes.get(p) or _as_ternary(ours[p]), their_codes.get(p) or _as_ternary(theirs[p])) for p in ternary]
    one_sided = set(our_codes) ^ set(their_codes)
    floats = [(ours[p], theirs[p]) for p in ours if p not in one_sided and _are_floats(ours[p], theirs[p])]
    token_ids = probe_tokens(config)
    if other_logits is None:
        other_logits = np.asarray(_logits(other_config, other_params, token_ids))
    comparison = _compare_logits(_logits(config, params, token_ids), jnp.asarray(other_logits))
    return Comparison(
        ternary_codes=sum(a.codes.size for a, _ in pairs),
        codes_differing=sum(int(jnp.sum(a.codes != b.codes)) for a, b in pairs),
        scales_differing=sum(int(jnp.sum(a.scale != b.scale)) for a, b in pairs),
        scales_max_difference=max((float(jnp.max(jnp.abs(b.scale / a.scale - 1))) for a, b in pairs), default=0.0),
        floats=sum(a.size for a, _ in floats),
        floats_differing=sum(int(jnp.sum(a != b)) for a, b in floats),
        floats_max_difference=max((float(jnp.max(jnp.abs(a - b))) for a, b in floats), default=0.0),
        **comparison,
    )


def probe_tokens(config: ModelConfig) -> np.ndarray:
    """The fixed sequence `[1, L]` that logits are compared on."""
    length = min(PROBE_TOKENS, config.max_seq_len)
    return np.random.default_rng(0).integers(0, config.vocab_size, (1, length))


def _leaves(params: Params, config: ModelConfig) -> dict[str, Any]:
    """The leaves by dotted path; a table that is quantized by row as the floats that it stands for."""
    leaves = flatten_dict(params, sep=".")
    table = leaves["embed_tokens.weight"]
    if config.embedding == "int8" and not isinstance(table, QuantizedRows):
        table = QuantizedRows(*quantize_rows(table, jnp))
    if isinstance(table, QuantizedRows):
        leaves["embed_tokens.weight"] = table.codes * table.scale
    return leaves


def _check_shapes(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    shapes, other = ({path: _shape(leaf) for path, leaf in leaves.items()} for leaves in (ours, theirs))
    for path in sorted(set(shapes) | set(other)):
        if shapes.get(path) != other.get(path):
            found = [str(list(found[path])) if path in found else "none" for found in (shapes, other)]
            raise ValueError(
                f"models of different shapes: {path}: found {found[0]} in the first, {found[1]} in the other"
            )


def _shape(leaf: Any) -> tuple[int, ...]:
    return (leaf.codes if isinstance(leaf, TernaryWeight) else leaf).shape


def _are_floats(*leaves: Any) -> bool:
    return not any(isinstance(leaf, TernaryWeight) for leaf in leaves)


def _ternary_leaves(params: Params, config: ModelConfig) -> dict[str, TernaryWeight]:
    """Every ternary matrix, by dotted path; latent ones are quantized as the training step quantizes them."""
    flat = flatten_dict(params, sep=".")
    packed = {path: leaf for path, leaf in flat.items() if isinstance(leaf, TernaryWeight)}
    return packed | jax.jit(quantize_params, static_argnums=1)(params, config)


def _as_ternary(weight: jax.Array) -> TernaryWeight:
    """Floats that should be `codes * scale`; where they are not, some code is none of the three."""
    scale = jnp.max(jnp.abs(weight), axis=(-2, -1))
    # Compared, not divided: a compiler may divide by multiplying with a rounded reciprocal.
    is_code = (weight == 0) | (jnp.abs(weight) == scale[..., None, None])
    return TernaryWeight(jnp.where(is_code, jnp.sign(weight), 2).astype(jnp.int8), scale)


def _logits(config: ModelConfig, params: Params, token_ids: np.ndarray) -> jax.Array:
    return jax.jit(LanguageModel(config).apply)({"params": ternarize(params, config)}, token_ids)


def _compare_logits(logits: jax.Array, other: jax.Array) -> dict[str, float]:
    log_p, log_q = jax.nn.log_softmax(logits), jax.nn.log_softmax(other)
    difference = jnp.abs(logits - other)
    return {
        "logits_max_difference": float(jnp.max(difference)),
        "logits_mean_difference": float(jnp.mean(difference)),
        "kl_divergence": float(jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1))),
        "top1_agreement": float(jnp.mean(jnp.argmax(logits, -1) == jnp.argmax(other, -1))),
    }
