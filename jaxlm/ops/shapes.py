"""Shape letters, as used in annotations, einsums and comments, and the array types built from them.

B batch    L query length       S key/cache length    D hidden_size    F intermediate_size
N query heads    K key/value heads    H head_dim    V vocab_size    O/I out/in features    E recurrent width
"""

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

AnyArray = jax.Array | np.ndarray
Tokens = Int[AnyArray, "B L"]
Positions = Int[AnyArray, "B L"]
SegmentIds = Int[AnyArray, "B L"]
LossMask = Bool[AnyArray, "B L"]
Hidden = Float[AnyArray, "B L D"]
Features = Float[AnyArray, "*batch I"]
Outputs = Float[AnyArray, "*batch O"]
Logits = Float[AnyArray, "B L V"]
LastLogits = Float[AnyArray, "B V"]
LatentWeight = Float[AnyArray, "*layers O I"]
Recurrent = Float[AnyArray, "B L E"]
State = Float[AnyArray, "B E"]
LowerBound = Float[AnyArray, "E"]
