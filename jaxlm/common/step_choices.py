"""The choices of a training step by name, known before JAX is imported."""

from typing import Literal

AttentionKernel = Literal["xla", "cudnn", "splash"]
# What the backward pass of a block finds saved; `TrainConfig.remat` explains each.
Remat = Literal["none", "products", "ternary", "blocks"]
