"""A ternary model written as an ordinary transformers directory of floats, for programs without ternary linears."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.hf_config import hf_model_type, to_hf_config
from jaxlm.common.architecture.packing import unpack
from jaxlm.common.architecture.parameters import parameters, scale_name, stored_tensors
from jaxlm.common.architecture.ternary import dequantize
from jaxlm.common.artifact.model_files import MAX_FILE_BYTES, write_model_files

# Precision of scales -> those of floats that hold them exactly.
EXACT = {
    "bfloat16": ("float32", "bfloat16", "float16"),  # down to the smallest scale
    "float16": ("float32", "float16"),
    "float32": ("float32",),
}


def unpacked_form(config: ModelConfig) -> ModelConfig:
    """Return the model whose config.json describes the dequantized weights: the scales are in them, table and head too.

    It is still called ternary, since that decides on the type of a BitNet.
    """
    embedding = "float" if config.embedding == "ternary" else config.embedding
    return replace(config, scale_per="tensor", activation_bits=8, embedding=embedding, ternary_head=False)


def unpacked_model_type(config: ModelConfig) -> str:
    """Return the model type in transformers that computes a model with its ternary weights as floats.

    Raises ValueError where there is none.
    """
    model_type = hf_model_type(unpacked_form(config))
    if model_type in ("jaxlm", "hgrn_bit") or config.linear_norm:
        reason = "linear_norm" if config.linear_norm else f"model type {model_type!r}"
        raise ValueError(
            f"dequantized: found {reason}, expected a Llama, a Qwen or a BitNet with sub-norms; write it packed"
        )
    return model_type


def write_dequantized(
    directory: Path,
    config: ModelConfig,
    read: Callable[[str], np.ndarray],
    *,
    float_dtype: str = "float32",
    tokenizer_dir: Path | None = None,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
    """Write the weights `scale * codes` into an existing directory.

    `read(name)` returns a tensor of the packed artifact; it is called once per tensor, in file order.

    The logits are those of the ternary model where it does not quantize its activations (`activation_bits` null): such
    a directory does not. Its config.json does not mention ternary weights, so other programs and `open_hub` take it for
    a dense model, or for a BitNet with float linears. Raises ValueError where transformers has no class that computes
    the model with float linears, and where `float_dtype` would round its scales.
    """
    unpacked_model_type(config)
    content = to_hf_config(unpacked_form(config), "latent", float_dtype)
    if float_dtype not in EXACT[config.scale_dtype]:
        raise ValueError(
            f"float_dtype: found {float_dtype!r}, which rounds scales of {config.scale_dtype}, expected "
            f"{' or '.join(EXACT[config.scale_dtype])}"
        )
    del content["jaxlm"]
    content.pop("quantization_config", None)
    packed = {p.name: p.shape for p in parameters(config) if p.storage == "ternary"}

    def dequantized(name: str) -> np.ndarray:
        if name not in packed:
            return read(name)
        shape = packed[name]
        codes = unpack(read(name), shape[0])
        return dequantize(codes, read(scale_name(name)).reshape(config.ternary_form.grid(*shape)), np)

    tensors = stored_tensors(config, "latent", float_dtype)
    write_model_files(
        directory, content, tensors, dequantized, tokenizer_dir=tokenizer_dir, max_file_bytes=max_file_bytes
    )
