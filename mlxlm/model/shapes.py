"""Shape letters, as in jaxlm/ops/shapes.py, and the array types built from them.

B batch    L query length    D hidden_size    V vocab_size    O/I out/in features    P packed words
H head_dim    E recurrent width
"""

import mlx.core as mx

# Integer covers uint32, which sampled tokens are; Int does not.
from jaxtyping import Bool, Float, Integer, UInt32

# One line per type: model_file.py replaces each by its array and a comment, `Hidden = mx.array  # [B, L, D]`.

Tokens = Integer[mx.array, "B L"]
SegmentIds = Integer[mx.array, "B L"]
TokenMask = Bool[mx.array, "B L"]
AttentionMask = Bool[mx.array, "B 1 L L"]
Hidden = Float[mx.array, "B L D"]
HeadInputs = Float[mx.array, "*batch D"]
HeadOutputs = Float[mx.array, "*batch V"]
Features = Float[mx.array, "*batch I"]
Outputs = Float[mx.array, "*batch O"]
Heads = Float[mx.array, "B heads L H"]
Logits = Float[mx.array, "B L V"]
LatentWeight = Float[mx.array, "O I"]
PackedWeight = UInt32[mx.array, "O P"]
WeightScale = Float[mx.array, "..."]
Recurrent = Float[mx.array, "B L E"]
State = Float[mx.array, "B E"]
LowerBound = Float[mx.array, "E"]
LayerBounds = Float[mx.array, "layers E"]
