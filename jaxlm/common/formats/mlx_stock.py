"""A ternary model in the format that stock mlx-lm quantizes to, which it serves without a model file.

mlx-lm computes it without quantizing activations, so only a model that does not either (`activation_bits: null`) has
this form. A ternary matrix is 2 bits a weight: the integer is code + 1, the scale is the ternary scale and the bias its
negative. Scales of a tensor, a row or a block of rows are repeated for each group.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.hf_config import hf_model_type, to_hf_config
from jaxlm.common.architecture.packing import AFFINE_GROUP_SIZES, pack_affine, unpack
from jaxlm.common.architecture.parameters import Parameter, StoredTensor, parameters, stored_form
from jaxlm.common.architecture.ternary import spread
from jaxlm.common.formats.dequantized import unpacked_form
from jaxlm.common.formats.mlx_affine import AffineForm
from jaxlm.common.formats.mlx_quantized import QUANTIZATION, QUANTIZATION_COPY

BITS = 2
# Name and shape of a tensor of the directory, the tensor of a packed artifact that it is made of, and how.
StockTensor = tuple[StoredTensor, str, Callable[[np.ndarray], np.ndarray]]


def is_known_to_mlx_lm(config: ModelConfig) -> bool:
    """Return True if mlx-lm has a model that computes this one with its weights as floats; its gate is SiLU.

    Of YaRN it knows no attention factor but the usual one, and no bounds that are not rounded.
    """
    scaling = config.rope_scaling
    is_usual = True
    if scaling is not None and scaling.type == "yarn":
        is_usual = bool(scaling.truncate) and scaling.attention_factor == scaling.usual_attention_factor
    return is_usual and hf_model_type(config) in ("llama", "qwen2", "qwen3") and config.activation == "silu"


def has_stock_form(config: ModelConfig) -> bool:
    """Return True if stock mlx-lm computes a ternary model from its own 2-bit format."""
    if config.linear != "ternary" or config.activation_bits is not None or config.embedding == "int8":
        return False
    return is_known_to_mlx_lm(unpacked_form(config)) and not config.linear_norm and _group_size(config) > 0


def _group_size(config: ModelConfig) -> int:
    """Return the largest group that divides the rows of all ternary matrices into groups of one scale; 0 for none."""
    kind, _, number = config.scale_per.partition(":")
    columns = [parameter.shape[1] for parameter in parameters(config) if parameter.storage == "ternary"]
    sizes = [int(number)] if kind == "group" else AFFINE_GROUP_SIZES
    return next((size for size in sizes if all(width % size == 0 for width in columns)), 0)


def stock_config_json(config: ModelConfig, float_dtype: str) -> dict[str, Any]:
    """Return the config.json: that of transformers for the model's floats, and how they are quantized."""
    content = to_hf_config(unpacked_form(config), "latent", float_dtype)
    del content["jaxlm"]
    quantization = {"group_size": _group_size(config), "bits": BITS, "mode": "affine"}
    return content | {QUANTIZATION: quantization, QUANTIZATION_COPY: quantization}


def stock_tensors(config: ModelConfig, float_dtype: str) -> tuple[StockTensor, ...]:
    """Return the tensors of the directory in file order; scales keep the precision of the config."""
    return tuple(tensor for parameter in parameters(config) for tensor in _stock_form(parameter, config, float_dtype))


def _stock_form(parameter: Parameter, config: ModelConfig, float_dtype: str) -> list[StockTensor]:
    name, shape = parameter.name, parameter.shape
    if parameter.storage != "ternary":
        return [(StoredTensor(name, shape, float_dtype), name, np.asarray)]
    codes, scales = (tensor.name for tensor in stored_form(parameter, config, "packed", float_dtype))
    (rows, columns), size, path = shape, _group_size(config), name.removesuffix(".weight")
    grid = config.ternary_form.grid(rows, columns)

    def by_group(scales: np.ndarray) -> np.ndarray:
        groups = (rows, columns // size)
        return np.ascontiguousarray(np.broadcast_to(spread(scales.reshape(grid), groups, np), groups))

    words = (rows, AffineForm(BITS, size).words(columns))
    per_group = (rows, columns // size)
    return [
        (StoredTensor(f"{path}.weight", words, "uint32"), codes, lambda packed: pack_affine(unpack(packed, rows))),
        (StoredTensor(f"{path}.scales", per_group, config.scale_dtype), scales, by_group),
        (StoredTensor(f"{path}.biases", per_group, config.scale_dtype), scales, lambda array: -by_group(array)),
    ]
