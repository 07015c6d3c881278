"""The form of a tensor in GGUF: its name, the order of its rows, and ternary codes in blocks.

Rotary embeddings rotate pairs of rows of q and k. In llama.cpp's architecture `llama` a pair is two neighbouring rows.
In all others, in our models and in Hugging Face's, the two rows are half a head apart.
"""

import math

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.parameters import Parameter, parameter_count, parameters
from jaxlm.common.architecture.presets import PRESETS
from jaxlm.common.architecture.ternary import SMALLEST_SCALE
from jaxlm.common.gguf.config import nearest_architecture

TERNARY_TYPES = (GGMLQuantizationType.TQ1_0, GGMLQuantizationType.TQ2_0)
TERNARY_BLOCK = 256
_OUTSIDE_BLOCKS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_IN_BLOCKS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.attn_sub_norm": "attn_sub_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.ffn_sub_norm": "ffn_sub_norm",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """Return llama.cpp's name of one of our parameters."""
    if name in _OUTSIDE_BLOCKS:
        return _OUTSIDE_BLOCKS[name]
    _, _, layer, rest = name.split(".", 3)
    module, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{_IN_BLOCKS[module]}.{kind}"


def gguf_scale_name(name: str) -> str:
    """Return llama.cpp's name of the optional tensor `[1]` that multiplies the output of one of our linears."""
    return gguf_name(name).removesuffix("weight") + "scale"


def is_block_linear(name: str) -> bool:
    """Return True if a parameter is the matrix of a linear in a block. These are ternary in a ternary model."""
    return name.endswith("_proj.weight")


def interleave_rows(matrix: np.ndarray, name: str, config: ModelConfig) -> np.ndarray:
    """Return one of our parameters `[out, in]` in the row order of its architecture.

    In architecture llama the rows of q and k are interleaved: rows half a head apart become neighbours. Every other
    matrix is returned as it is.
    """
    if not (heads := _rotary_heads(name, config)):
        return matrix
    return matrix.reshape(heads, 2, -1, matrix.shape[-1]).swapaxes(1, 2).reshape(matrix.shape)


def separate_rows(matrix: np.ndarray, name: str, config: ModelConfig) -> np.ndarray:
    """Return a parameter `[out, in]` in our row order: the inverse of `interleave_rows`."""
    if not (heads := _rotary_heads(name, config)):
        return matrix
    return matrix.reshape(heads, -1, 2, matrix.shape[-1]).swapaxes(1, 2).reshape(matrix.shape)


def _rotary_heads(name: str, config: ModelConfig) -> int:
    if nearest_architecture(config) != "llama":
        return 0
    return {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(name.split(".")[-2], 0)


def check_block_size(config: ModelConfig, ternary_type: str) -> None:
    """Raise ValueError where the rows of a ternary matrix do not divide into blocks. It names a preset that fits."""
    for parameter in parameters(config):
        if not _divides_into_blocks(parameter):
            raise ValueError(
                f"{parameter.name}: found {parameter.shape[1]} inputs, expected a multiple of {TERNARY_BLOCK}, the "
                f"block of {ternary_type}; the nearest preset that fits is {_nearest_preset(config)}"
            )


def _divides_into_blocks(parameter: Parameter) -> bool:
    return parameter.storage != "ternary" or parameter.shape[1] % TERNARY_BLOCK == 0


def _nearest_preset(config: ModelConfig) -> str:
    """Return the ternary preset of the same architecture, nearest in size, whose rows all divide into blocks."""
    fitting = {
        name: parameter_count(preset)
        for name, preset in PRESETS.items()
        if (preset.linear, preset.sub_norm, preset.num_mlgru_layers) == ("ternary", config.sub_norm, 0)
        and all(map(_divides_into_blocks, parameters(preset)))
    }
    size = parameter_count(config)
    return min(fitting, key=lambda name: abs(math.log(fitting[name] / size)))


def to_ternary_blocks(codes: np.ndarray, scale: np.float16, quantization: GGMLQuantizationType) -> np.ndarray:
    """Return codes `[out, in]` and their scale as TQ1_0 or TQ2_0 bytes: uint8 `[out, bytes per row]`."""
    encoded = quantize(codes.astype(np.float32), quantization)
    # The last two bytes of a block are its scale. The library wrote 1 there, or 0 where all codes are 0.
    _by_block(encoded, quantization)[:, -2:] = np.array([scale], "<f2").view(np.uint8)
    return encoded


def ternary_codes(encoded: np.ndarray, quantization: GGMLQuantizationType) -> np.ndarray:
    """Return the int8 codes `[out, in]` of TQ1_0 or TQ2_0 bytes. Raises ValueError on a code of value 3."""
    encoded = encoded.copy()
    blocks = _by_block(encoded, quantization)
    is_zero = _block_scales(blocks) == 0
    blocks[:, -2:] = np.array([1], "<f2").view(np.uint8)
    codes = dequantize(encoded, quantization).astype(np.int8)
    codes.reshape(-1, TERNARY_BLOCK)[is_zero] = 0
    if codes.max() > 1:
        raise ValueError("found a ternary code of value 3, expected 0, 1 or 2")
    return codes


def ternary_scale(encoded: np.ndarray, quantization: GGMLQuantizationType) -> np.float32:
    """Return the one scale of TQ1_0 or TQ2_0 bytes. Raises ValueError where blocks have different scales."""
    scales = _block_scales(_by_block(encoded, quantization))
    scales = np.unique(scales[scales != 0])
    if len(scales) == 0:
        return np.float32(SMALLEST_SCALE)  # all codes are 0, so any scale is right
    if len(scales) > 1:
        raise ValueError(f"found blocks of {len(scales)} different scales, expected one scale per matrix")
    if not 0 < scales[0] < np.inf:
        raise ValueError(f"found a scale of {scales[0]}, expected a positive number")
    return np.float32(scales[0])


def _by_block(encoded: np.ndarray, quantization: GGMLQuantizationType) -> np.ndarray:
    return encoded.reshape(-1, GGML_QUANT_SIZES[quantization][1])


def _block_scales(blocks: np.ndarray) -> np.ndarray:
    return blocks[:, -2:].copy().view("<f2")[:, 0]
