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
from jaxlm.common.architecture.ternary import TernaryForm, dequantize, quantize_activation, quantize_weight, spread
from jaxlm.ops.backward_products import features_gradient, weight_gradient
from jaxlm.ops.int8_product import scaled_product
from jaxlm.ops.shapes import Features, LatentWeight, Outputs
from jaxlm.parallel.gathered_codes import all_gather_codes
from jaxlm.parallel.sharding import all_gather

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

    Invariants: codes in {-1, 0, 1}; dequantized == codes * scales, see `TernaryForm.grid`. In training the gradient
    flows to `latent`, which the forward pass never reads. It is None in a model that is only run.
    """

    # Not typed more closely: jax also builds the node with placeholders and with gradients in its leaves.
    codes: Any  # Int8 [*layers, O, I]
    scale: Any  # Float [*layers, blocks, groups]
    activation_bits: int | None = flax.struct.field(pytree_node=False)
    latent: Any = None  # Float [*layers, O, I]
    # Precision that the operands of the gradients' products are rounded to; None is that of the activations.
    backward_dtype: str | None = flax.struct.field(pytree_node=False, default=None)

    def dequantized(self, dtype: Any) -> jax.Array:
        """Return codes * scales `[*layers, O, I]`, rounded to a precision."""
        return dequantize(self.codes, self.scale, jnp).astype(dtype)


def ternarize_weight(latent: LatentWeight, form: TernaryForm) -> TernaryWeight:
    """Return the ternary form of latent weights `[..., O, I]`, without a gradient."""
    return TernaryWeight(*quantize_weight(jax.lax.stop_gradient(latent), form, jnp), form.activation_bits)


def quantize_params(params: Params, config: ModelConfig) -> dict[str, TernaryWeight]:
    """Return the ternary form of every latent matrix that the config calls ternary, by dotted path."""
    flat = flatten_dict(params, sep=".")
    paths = {".".join(parameter.path) for parameter in parameters(config) if parameter.storage == "ternary"}
    return {
        path: ternarize_weight(cast(jax.Array, flat[path]), config.ternary_form)
        for path in sorted(paths)
        if isinstance(flat[path], jax.Array | np.ndarray)
    }


def with_ternary(params: Params, ternary: dict[str, TernaryWeight], backward_dtype: str | None = None) -> Params:
    """Replace each latent matrix by its TernaryWeight. Straight-through: gradients flow to the latent matrix.

    `backward_dtype` is the precision of the gradients' products (see TernaryWeight).
    """
    flat = flatten_dict(params, sep=".")
    joined = {
        path: weight.replace(latent=flat[path], backward_dtype=backward_dtype) for path, weight in ternary.items()
    }
    return unflatten_dict(flat | joined, sep=".")


def ternarize(params: Params, config: ModelConfig) -> Params:
    """Return parameters for inference: latent matrices become ternary ones; all others stay the same."""
    return unflatten_dict(flatten_dict(params, sep=".") | quantize_params(params, config), sep=".")


class QuantizedFeatures(flax.struct.PyTreeNode):
    """Features `[..., I]` in int8, for all the linears that read them. Invariant: dequantized == codes / scale.

    The gradient flows to `features`, which products never read.
    """

    # Not typed more closely: jax also builds the node with placeholders and with gradients in its leaves.
    features: Any  # Float [..., I]
    codes: Any  # Int8 [..., I]
    scale: Any  # Float32 [..., 1]


@jax.named_scope("quantize")
def quantize_features(x: Features, name: str = "") -> QuantizedFeatures:
    """Quantize features per token. Rematerialization knows codes and scale as TERNARY_RESIDUALS, and by `name`."""
    codes, scale = quantize_activation(jax.lax.stop_gradient(x), jnp)
    kept = checkpoint_name((codes.astype(jnp.int8), scale), TERNARY_RESIDUALS)
    return QuantizedFeatures(x, *checkpoint_name(kept, name))


def ternary_linear(x: Features | QuantizedFeatures, weight: TernaryWeight, name: str = "") -> Outputs:
    """Return y = x~ W~^T `[..., O]` of features `[..., I]` and the dequantized weight W~ = codes * scales `[O, I]`.

    With 8 bits x~ = q / s, of int8 features q and their scale s `[..., 1]` (BitNet b1.58, arXiv 2402.17764), otherwise
    x itself. Where the inputs of an output share a scale g, y = (q codes^T) * (g / s): products of int8 are summed in
    int32, so they are exact in any order of summation. Where they have scales by group, W~ is rounded to the precision
    of x.

    Gradients are straight-through (arXiv 1308.3432): dx = dy W~ `[..., I]` and dW = dy^T x~ `[O, I]`, summed over all
    tokens. `name` is the layer's, by which a mesh splits the codes.
    """
    if weight.activation_bits and not isinstance(x, QuantizedFeatures):
        x = quantize_features(x)
    return _product(x, weight, name)


def dequantized_features(x: Features | QuantizedFeatures, dtype: Any) -> Features:
    """Return x~ `[..., I]` in a precision."""
    return (x.codes / x.scale if isinstance(x, QuantizedFeatures) else x).astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x: Features | QuantizedFeatures, weight: TernaryWeight, name: str) -> Outputs:
    return _forward(x, weight, name)[0]


def _forward(x, weight, name):
    gathered = all_gathered(weight, name)
    y = _int8_outputs(x, gathered) if isinstance(x, QuantizedFeatures) else _float_outputs(x, gathered)
    # Of quantized features the int8 residuals are kept: a quarter of the activations of a float layer.
    return y, (x.replace(features=None) if isinstance(x, QuantizedFeatures) else x, weight)


def _int8_outputs(x: QuantizedFeatures, weight: TernaryWeight) -> Outputs:
    dtype = x.features.dtype
    blocks, groups = weight.scale.shape
    if groups > 1:  # q is exact in every precision of floats
        return (_float_product(x.codes.astype(dtype), weight.dequantized(dtype)) / x.scale).astype(dtype)
    if blocks == 1:
        return scaled_product(x.codes, weight.codes, weight.scale.reshape(()) / x.scale, dtype)
    return _scaled(scaled_product(x.codes, weight.codes, 1 / x.scale, jnp.float32), weight).astype(dtype)


def _float_outputs(x: Features, weight: TernaryWeight) -> Outputs:
    if weight.scale.shape[-1] > 1:
        return _float_product(x, weight.dequantized(x.dtype)).astype(x.dtype)
    # Codes are exact in every precision, scales are not.
    return _scaled(_float_product(x, weight.codes.astype(x.dtype)), weight).astype(x.dtype)


def _float_product(x: Any, matrix: jax.Array) -> jax.Array:
    return jnp.einsum("...i,oi->...o", x, matrix, preferred_element_type=jnp.float32)


def _scaled(products: Any, weight: TernaryWeight) -> Any:
    """Return products `[..., O]` times the scales of a weight whose inputs share them."""
    scales = spread(weight.scale, weight.codes.shape, jnp)[:, 0]  # [O], or [1]
    return products * jnp.expand_dims(scales, range(products.ndim - 1))


def all_gathered(weight: TernaryWeight, name: str) -> TernaryWeight:
    """Return codes and scales all-gathered where a mesh splits them, without the latent weight."""
    # As packed bytes: without this, a compiler may convert first and all-gather floats.
    codes, scale = all_gather_codes(weight.codes, name), all_gather(weight.scale, name)
    return weight.replace(codes=codes, scale=scale, latent=None)


def _backward(name, residuals, dy):
    x, weight = residuals
    gathered, dtype = all_gathered(weight, name), weight.backward_dtype
    # dx = dy W~: [..., O] @ [O, I]
    dx = features_gradient(dy, gathered.codes, gathered.scale, dtype)
    dweight = None
    if weight.latent is not None:
        # dW = dy^T x~: [tokens, O], [tokens, I] -> [O, I]
        operand = (x.codes, x.scale) if isinstance(x, QuantizedFeatures) else (x, None)
        dweight = weight_gradient(dy, *operand, dtype)
    if isinstance(x, QuantizedFeatures):
        dx = QuantizedFeatures(dx, no_gradient(x.codes), jnp.zeros_like(x.scale))
    return dx, weight.replace(codes=no_gradient(weight.codes), scale=jnp.zeros_like(weight.scale), latent=dweight)


def no_gradient(integers: Any) -> np.ndarray:
    """Return the gradient of integers that jax expects: zeros of its type float0."""
    return np.zeros(integers.shape, jax.dtypes.float0)


_product.defvjp(_forward, _backward)
