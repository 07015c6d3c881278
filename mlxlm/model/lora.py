"""A low-rank adapter (LoRA, arXiv 2106.09685) beside a frozen ternary linear."""

from typing import Any

import mlx.core as mx
from mlx_lm.tuner.lora import LoRALinear

from mlxlm.model.ternary_linear import ternary_linear


class LoRABitLinear(LoRALinear):
    """y + scale (x A) B for a BitLinear's y, with A `lora_a` `[in, r]` and B `lora_b` `[r, out]`.

    The adapter sees x as the weight does, after the layer's own norm, so that A B can be added to latent weights.
    """

    linear: Any  # a BitLinear, whose module needs this one

    def __init__(self, linear: Any, r: int, scale: float, dropout: float):
        in_features, out_features = linear.in_features, linear.weight.shape[0]
        super().__init__(in_features, out_features, r, dropout, scale)
        self.linear = linear

    def __call__(self, x: mx.array) -> mx.array:
        x = self.linear.normed(x)
        y = ternary_linear(x, self.linear.weight, self.linear.weight_scale)
        update = (self.dropout(x) @ self.lora_a) @ self.lora_b
        return y + (self.scale * update).astype(x.dtype)

    def fuse(self, dequantize: bool = False) -> Any:
        """Raise ValueError: mlx-lm would write floats in the place of ternary weights."""
        raise ValueError(
            "fuse: found a ternary weight, which cannot take in an adapter; keep the adapter beside the model and name "
            "it with --adapter-path"
        )
