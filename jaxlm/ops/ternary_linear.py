"""The ternary linear as one operation: int8 codes times int8 activations, with its own backward pass.

The layer computes from codes and a scale. In training, `quantize_params` quantizes the latent weights once per step,
after the update and outside scans and micro-batches, and `with_ternary` attaches them to the codes, so that they
receive the gradient. `ternarize` is for inference from latent weights; packed inference reads codes from a file. So
training, evaluation and inference run the same layer, and nothing is quantized twice.
"""

import functools
from typing import Any, cast

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.ad_checkpoint import checkpoint_name

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.parameters import parameters
from jaxlm.common.architecture.ternary import quantize_activation, quantize_weight
from jaxlm.ops.int8_product import scaled_product
from jaxlm.ops.shapes import Features, LatentWeight, Outputs
from jaxlm.parallel.sharding import all_gather_codes

Params = dict[str, Any]
# Tag of the int8 codes and the scale of a ternary linear's input, by which a remat policy can save them.
TERNARY_RESIDUALS = "ternary_residuals"


@jax.custom_vjp
def straight_through(latent: jax.Array, quantized: jax.Array) -> jax.Array:
    """Return `quantized`, whose gradient flows to `latent` unchanged (arXiv 1308.3432)."""
    return quantized


straight_through.defvjp(lambda latent, quantized: (quantized, None), lambda _, dy: (dy, jnp.zeros_like(dy)))


class TernaryWeight(flax.struct.PyTreeNode):
    """A ternary matrix, or a stack of them.

    Invariants: codes in {-1, 0, 1}; one scale per matrix; dequantized == codes * scale. In training the
    gradient flows to `latent`, which the forward pass never reads. It is None in a model that is only run.
    """

    # Not typed more closely: jax also builds the node with placeholders and with gradients in its leaves.
    codes: Any  # Int8 [*layers, O, I]
    scale: Any  # Float [*layers]
    latent: Any = None  # Float [*layers, O, I]


def ternarize_weight(latent: LatentWeight, scale_dtype: str) -> TernaryWeight:
    """Return the ternary form of latent weights `[..., O, I]`, without a gradient."""
    return TernaryWeight(*quantize_weight(jax.lax.stop_gradient(latent), scale_dtype, jnp))


def quantize_params(params: Params, config: ModelConfig) -> dict[str, TernaryWeight]:
    """Return the ternary form of every latent matrix that the config calls ternary, by dotted path."""
    flat = flatten_dict(params, sep=".")
    paths = {".".join(parameter.path) for parameter in parameters(config) if parameter.storage == "ternary"}
    return {
        path: ternarize_weight(cast(jax.Array, flat[path]), config.scale_dtype)
        for path in sorted(paths)
        if not isinstance(flat[path], TernaryWeight)
    }


def with_ternary(params: Params, ternary: dict[str, TernaryWeight]) -> Params:
    """Replace each latent matrix by its TernaryWeight. Straight-through: gradients flow to the latent matrix."""
    flat = flatten_dict(params, sep=".")
    joined = {path: weight.replace(latent=flat[path]) for path, weight in ternary.items()}
    return unflatten_dict(flat | joined, sep=".")


def ternarize(params: Params, config: ModelConfig) -> Params:
    """Return parameters for inference: ternary matrices without latent weights. Packed ones stay the same."""
    return unflatten_dict(flatten_dict(params, sep=".") | quantize_params(params, config), sep=".")


class QuantizedFeatures(flax.struct.PyTreeNode):
    """Features `[..., I]` in int8, for all the linears that read them. Invariant: dequantized == codes / scale.

    The gradient flows to `features`, which products never read.
    """

    # Not typed more closely: jax also builds the node with placeholders and with gradients in its leaves.
    features: Any  # Float [..., I]
    codes: Any  # Int8 [..., I]
    scale: Any  # Float32 [..., 1]


def quantize_features(x: Features, name: str = "") -> QuantizedFeatures:
    """Quantize features per token. Rematerialization knows codes and scale as TERNARY_RESIDUALS, and by `name`."""
    codes, scale = quantize_activation(jax.lax.stop_gradient(x), jnp)
    kept = checkpoint_name((codes.astype(jnp.int8), scale), TERNARY_RESIDUALS)
    return QuantizedFeatures(x, *checkpoint_name(kept, name))


def ternary_linear(x: Features | QuantizedFeatures, weight: TernaryWeight, name: str = "") -> Outputs:
    """Return y = (q codes^T) * (g / s) `[..., O]` of BitNet b1.58 (arXiv 2402.17764).

    q `[..., I]` are the features in int8 and s `[..., 1]` their scale, codes `[O, I]` the weight in {-1, 0, 1} and g
    its scale. Products of int8 are summed in int32, so they are exact in any order of summation.

    Gradients are straight-through (arXiv 1308.3432), those of y = x~ W~^T with the dequantized x~ = q / s and
    W~ = g codes: dx = dy W~ `[..., I]` and dW = dy^T x~ `[O, I]`, summed over all tokens.
    `name` is the layer's, by which a mesh splits the codes.
    """
    return _product(x if isinstance(x, QuantizedFeatures) else quantize_features(x), weight, name)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x: QuantizedFeatures, weight: TernaryWeight, name: str) -> Outputs:
    return _forward(x, weight, name)[0]


def _forward(x, weight, name):
    y = scaled_product(x.codes, all_gather_codes(weight.codes, name), weight.scale / x.scale, x.features.dtype)
    # int8 residuals: a quarter of the activations that a float layer keeps.
    return y, (x.codes, x.scale, weight)


def _backward(name, residuals, dy):
    quantized, scale, weight = residuals
    # All-gathered as bytes: without this, a compiler may convert first and all-gather floats.
    codes = all_gather_codes(weight.codes, name)
    # dx = dy W~: [..., O] @ [O, I]
    dx = dy @ (codes * weight.scale).astype(dy.dtype)
    dweight = None
    if weight.latent is not None:
        # dW = dy^T x~: [tokens, O], [tokens, I] -> [O, I]
        dy_TO = dy.reshape(-1, dy.shape[-1])
        x_TI = (quantized / scale).astype(dy.dtype).reshape(-1, quantized.shape[-1])
        contract_tokens = (((0,), (0,)), ((), ()))
        dweight = jax.lax.dot_general(dy_TO, x_TI, contract_tokens, preferred_element_type=jnp.float32)
    to_features = QuantizedFeatures(dx, no_gradient(quantized), jnp.zeros_like(scale))
    return to_features, TernaryWeight(no_gradient(weight.codes), jnp.zeros_like(weight.scale), dweight)


def no_gradient(integers: Any) -> np.ndarray:
    """Return the gradient of integers that jax expects: zeros of its type float0."""
    return np.zeros(integers.shape, jax.dtypes.float0)


_product.defvjp(_forward, _backward)
