"""A low-rank adapter (LoRA, arXiv 2106.09685) next to a frozen ternary linear."""

from typing import Any

from mlx_lm.tuner.lora import LoRALinear

from mlxlm.model.shapes import Features, Outputs


class LoRABitLinear(LoRALinear):
    """A BitLinear with an adapter: y + scale (x A) B, with A `lora_a` `[in, r]` and B `lora_b` `[r, out]`.

    The adapter reads x after the layer's own norm, as the weight does, so that A B can be added to latent weights.
    """

    linear: Any  # a BitLinear, whose module needs this one

    def __init__(self, linear: Any, r: int, scale: float, dropout: float):
        in_features, out_features = linear.in_features, linear.weight.shape[0]
        super().__init__(in_features, out_features, r, dropout, scale)
        self.linear = linear

    def __call__(self, x: Features) -> Outputs:
        x = self.linear.normed(x)
        y = self.linear.product(x)
        update = (self.dropout(x) @ self.lora_a) @ self.lora_b
        return y + (self.scale * update).astype(x.dtype)

    def fuse(self, dequantize: bool = False) -> Any:
        """Raise ValueError: mlx-lm's fusing would write floats instead of ternary weights."""
        raise ValueError(
            "fuse: found a ternary weight, expected a dense one, which can absorb an adapter; keep the adapter next to "
            "the model and load it with --adapter-path, or merge it with `mlxlm merge`"
        )
