"""A ternary model written as an ordinary transformers directory of floats, for programs without ternary linears."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.hf_config import hf_model_type, to_hf_config
from jaxlm.common.architecture.parameters import parameters, scale_name, stored_tensors
from jaxlm.common.architecture.ternary import dequantize, unpack
from jaxlm.common.artifact.model_files import MAX_FILE_BYTES, write_model_files


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

    Such a model does not quantize its activations, so its logits are not those of the ternary model. Its config.json
    does not mention ternary weights, so other programs and `open_hub` take it for a dense Llama, Qwen2 or Qwen3, or for
    a BitNet with float linears. Scales rounded to bfloat16 (`scale_dtype`) are exact in either `float_dtype`. Raises
    ValueError where transformers has no class that computes the model with float linears.
    """
    model_type = hf_model_type(config)
    if model_type not in ("llama", "qwen2", "qwen3", "bitnet") or config.linear_norm:
        reason = "linear_norm" if config.linear_norm else f"model type {model_type!r}"
        raise ValueError(
            f"dequantized: found {reason}, expected a Llama, Qwen2, Qwen3 or a BitNet with sub-norms; write it packed"
        )
    content = to_hf_config(config, "latent", float_dtype)
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
