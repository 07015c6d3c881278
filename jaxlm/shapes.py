"""Shape letters, as used in annotations, einsums and comments, and the array types built from them.

B batch    L query length       S key/cache length    D hidden_size    F intermediate_size
N query heads    K key/value heads    H head_dim    V vocab_size    O/I out/in features
"""

import jax
from jaxtyping import Bool, Float, Int, Int8

Tokens = Int[jax.Array, "B L"]
Positions = Int[jax.Array, "B L"]
SegmentIds = Int[jax.Array, "B L"]
LossMask = Bool[jax.Array, "B L"]
Hidden = Float[jax.Array, "B L D"]
Features = Float[jax.Array, "*batch I"]
Outputs = Float[jax.Array, "*batch O"]
Logits = Float[jax.Array, "B L V"]
AttentionMask = Bool[jax.Array, "B L S"]
LatentWeight = Float[jax.Array, "*layers O I"]
Codes = Int8[jax.Array, "*layers O I"]
WeightScale = Float[jax.Array, "*layers"]
