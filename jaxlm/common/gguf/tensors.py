"""The form of a tensor in GGUF: its name, and the order of its rows.

Rotary embeddings rotate pairs of rows of q and k. In llama.cpp's architecture `llama` a pair is two neighbouring rows.
In all others, in our models and in Hugging Face's, the two rows are half a head apart.
"""

import numpy as np

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.gguf.config import nearest_architecture

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
