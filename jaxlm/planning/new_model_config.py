"""The size and architecture of a new model, as a command takes them."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from jaxlm.common.architecture.model_size import Architecture
from jaxlm.common.run.optimizer_config import OptimizerName


@dataclass(frozen=True, kw_only=True)
class NewModelConfig:
    """Size and architecture of a new model, or a preset. Raises ValueError on a value out of range."""

    params: str | None = None
    """Number of parameters, for example 350M, 1.5B or 1200000."""
    preset: str | None = None
    """Preset instead of a size and an architecture, for example qwen3-0.6b (jaxlm presets lists them)."""
    arch: Architecture = "ternary"
    """Architecture: ternary, a BitNet b1.58, from 100M on with sub-norms; mmfree, a MatMul-free model; dense, a Llama."""
    vocab_size: int | None = None
    """Size of the vocabulary, in tokens; by default chosen by the number of parameters."""
    tokens: int | None = None
    """Tokens to train on; by default 20 for each parameter (arXiv 2203.15556)."""
    batch_size: int = 8
    """Sequences per optimizer step."""
    seq_len: int | None = None
    """Tokens per sequence; by default chosen by the number of parameters, of a preset at most 2,048. A longer one
    raises max_seq_len."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Precision of activations over float32 weights in training."""
    optimizer: OptimizerName | Literal["auto"] = "auto"
    """Optimizer of that training: with muon the matrices of the blocks have one moment in place of two; auto takes what
    the studies found for the size and the tokens of a step."""
    offload: Literal["optimizer"] | None = None
    """Part of the state in the memory of the host: optimizer, the moments."""
    output_dir: str | None = None
    """Directory for a blank latent artifact: fresh weights that training starts from with --init_from."""
    float_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of floats in artifacts; bfloat16 rounds them."""
    seed: int = 0
    """Seed of the blank artifact's weights."""
    table: bool = False
    """Print the page docs/sizes.md instead: ten sizes of each architecture."""

    def __post_init__(self) -> None:
        changed = [f.name for f in dataclasses.fields(self) if f.name != "table" and getattr(self, f.name) != f.default]
        if self.table and changed:
            raise ValueError(f"{changed[0]}: has no effect with table")
        if not self.table and (self.params is None) == (self.preset is None):
            found = "not given" if self.params is None else "given with preset"
            raise ValueError(f"params: {found}, expected a size such as 350M, or --preset NAME, or --table true")
        if self.preset is not None and self.arch != "ternary":
            raise ValueError("arch: has no effect with preset")
        if self.output_dir is None and self.seed != 0:
            raise ValueError("seed: has no effect without output_dir")
        for name in ("batch_size", "seq_len", "tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: found {value}, expected at least 1")
