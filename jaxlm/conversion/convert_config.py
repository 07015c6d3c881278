"""The settings of the commands `jaxlm convert` and `jaxlm verify`."""

from dataclasses import dataclass
from typing import Literal

from jaxlm.conversion.output import Form
from shared_tokenizer.settings import setting

FloatType = Literal["float32", "bfloat16", "float16"]
TernaryType = Literal["Q2_0", "TQ1_0", "TQ2_0"]


@dataclass(frozen=True)
class ConvertConfig:
    """A model and the form that it is converted into."""

    source: str = setting(is_model=True)
    """Run directory, artifact, transformers or MLX directory, or GGUF file."""
    destination: str = setting()
    """Directory to create, or with --to gguf the file."""
    to: Form = "packed"
    """packed: an artifact of ternary codes in 2 bits and their scales; latent: one of float weights that training can
    go on from; dequantized: a transformers directory of floats, which does not quantize activations; mlx: a directory
    for stock mlx-lm; gguf: a file for llama.cpp."""
    read_as: Literal["found", "ternary"] = setting("found", also="as")
    """Also --as: ternary reads a dense source as the ternary model that it is. Floats that are ternary keep every code
    and scale; others are latent weights."""
    scale_per: str | None = None
    """With --as ternary: tensor, row, row_blocks:N, or group:32, 64 or 128; null for what the weights show, or what the
    preset of the same shape has."""
    activation_bits: Literal["auto", "none", 8] = "auto"
    """With --as ternary: bits of the activations; auto for those of the preset of the same shape, without one none for
    weights that are ternary already."""
    float_dtype: FloatType = "float32"
    """Precision of the tensors that are not ternary; the shorter ones round. float16 is for gguf, dequantized and the
    2-bit format of stock mlx-lm."""
    ternary_type: TernaryType = "Q2_0"
    """Type of ternary matrices in a GGUF. Q2_0 (2.25 bits a weight, input sizes divisible by 64) runs on every backend
    of llama.cpp from July 2026 on; TQ2_0 (2.06) and TQ1_0 (1.69), divisible by 256, in older builds on some."""
    with_tokenizer: bool = True
    """Take the tokenizer along."""
    verify: bool = False
    """Fail where the logits of what was written differ by more than the tolerance, and leave nothing behind."""
    tolerance: float = 1e-3
    """Largest mean difference of logits that verify allows."""
    verbose: bool = False
    """Show every tensor, not one line per kind of tensor."""


@dataclass(frozen=True)
class VerifyConfig:
    """Two models to compare."""

    first: str = setting(is_model=True)
    """Run directory, artifact, transformers or MLX directory, or GGUF file."""
    second: str = setting(is_model=True)
    """Another one."""
    tolerance: float = 1e-3
    """Largest mean difference of logits."""
