"""Quantization that is mixed in: a matrix, its inputs and new norms on their way from a float model to a ternary one.

With the share s of the quantization, what a ternary linear multiplies is v~ = (1 - s) v + s q(v), for weights and
inputs alike, and an inserted norm computes (1 - s) x + s norm(x). At s = 0 the model is the float one, at s = 1 the
ternary one. Gradients are straight-through: those of v~ go to v.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxlm.common.architecture.ternary import dequantize
from jaxlm.ops.shapes import Features, Outputs
from jaxlm.ops.ternary_linear import Params, QuantizedFeatures, TernaryWeight, dequantized_features, straight_through


class MixedWeight(flax.struct.PyTreeNode):
    """A latent matrix, or a stack of them, of which a share is quantized.

    Without a share nothing is quantized, and there are no codes.
    """

    # Not typed more closely: jax also builds the node with placeholders and with gradients in its leaves.
    latent: Any  # Float [*layers, O, I]
    codes: Any = None  # Int8 [*layers, O, I]
    scale: Any = None  # Float [*layers, blocks, groups]
    share: Any = None  # Float32 [*layers]
    activation_bits: int | None = flax.struct.field(pytree_node=False, default=None)

    def mixed(self, dtype: Any) -> jax.Array:
        """Return v~ `[O, I]` in a precision, with the gradient straight through to the latent matrix."""
        if self.share is None:
            return self.latent.astype(dtype)
        quantized = dequantize(self.codes, self.scale, jnp)
        return straight_through(self.latent, _mix(self.share, self.latent, quantized)).astype(dtype)


class MixedGain(flax.struct.PyTreeNode):
    """The gain of an inserted norm, and the share of the norm in its output; without a share there is no norm."""

    weight: Any  # Float [*layers, E]
    share: Any = None  # Float32 [*layers]


def mixed_linear(x: Features | QuantizedFeatures, weight: MixedWeight) -> Outputs:
    """Return y = x~ W~^T `[..., O]` of features `[..., I]`, where both are mixed."""
    features, matrix = mixed_operands(x, weight)
    return jnp.einsum("...i,oi->...o", features, matrix)


def mixed_operands(x: Features | QuantizedFeatures, weight: MixedWeight) -> tuple[Features, jax.Array]:
    """Return x~ `[..., I]` and W~ `[O, I]` as floats."""
    if not isinstance(x, QuantizedFeatures):
        return x, weight.mixed(x.dtype)
    features = x.features
    if weight.share is not None:
        mixed = _mix(weight.share, features, dequantized_features(x, jnp.float32)).astype(features.dtype)
        features = straight_through(features, mixed)
    return features, weight.mixed(features.dtype)


def mixed_norm(x: Features, normed: Features, gain: MixedGain) -> Features:
    """Return (1 - s) x + s norm(x) of an inserted norm."""
    return x if gain.share is None else _mix(gain.share, x, normed).astype(x.dtype)


def _mix(share: Any, value: Any, quantized: Any) -> jax.Array:
    return (1 - share) * value + share * quantized


def with_share(
    params: Params, ternary: dict[str, TernaryWeight], share: jax.Array | None, *, new_norms: bool = False
) -> Params:
    """Replace each latent matrix by its MixedWeight, and with `new_norms` the gain of each sub-norm by its MixedGain.

    `share` is one number for all; None quantizes nothing.
    """
    flat: dict[str, Any] = {**flatten_dict(params, sep=".")}
    for path, weight in ternary.items():
        latent = flat[path]
        if share is None:
            flat[path] = MixedWeight(latent)
        else:
            shares = jnp.broadcast_to(share, jnp.shape(latent)[:-2])
            flat[path] = MixedWeight(latent, weight.codes, weight.scale, shares, weight.activation_bits)
    if new_norms:
        for path, gain in list(flat.items()):
            if path.endswith("_sub_norm.weight"):
                shares = None if share is None else jnp.broadcast_to(share, jnp.shape(gain)[:-1])
                flat[path] = MixedGain(gain, shares)
    return unflatten_dict(flat, sep=".")
