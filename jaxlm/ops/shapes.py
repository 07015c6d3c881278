"""Shape letters, as used in annotations, einsums and comments, and the array types built from them.

B batch    L query length       S key/cache length    D hidden_size    F intermediate_size
N query heads    K key/value heads    G = N/K queries per key    H head_dim    V vocab_size    O/I out/in features
E recurrent width
"""

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, Int8, Int32

AnyArray = jax.Array | np.ndarray
Tokens = Int[AnyArray, "B L"]
Positions = Int[AnyArray, "B L"]
SegmentIds = Int[AnyArray, "B L"]
KeySegmentIds = Int[AnyArray, "B S"]
LossMask = Bool[AnyArray, "B L"]
Hidden = Float[AnyArray, "B L D"]
Features = Float[AnyArray, "*batch I"]
Outputs = Float[AnyArray, "*batch O"]
Logits = Float[AnyArray, "B L V"]
LastLogits = Float[AnyArray, "B V"]
LatentWeight = Float[AnyArray, "*layers O I"]
Int8Features = Int8[jax.Array, "*batch I"]
Codes = Int8[jax.Array, "O I"]
Int32Outputs = Int32[jax.Array, "*batch O"]
FeatureScale = Float[jax.Array, "*batch 1"]
Queries = Float[jax.Array, "B L N H"]
Keys = Float[jax.Array, "B L K H"]
Values = Float[jax.Array, "B L K H"]
CachedKeys = Float[jax.Array, "B K S H"]
CachedValues = Float[jax.Array, "B K S H"]
Recurrent = Float[AnyArray, "B L E"]
State = Float[AnyArray, "B E"]
LowerBound = Float[AnyArray, "E"]
