import math
import re

import pytest

from jaxlm.common.sampling import LARGEST_SEED, Sampling


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": 0}, "max_tokens: found 0, expected at least 1"),
        *(
            ({"temperature": value}, f"temperature: found {value}, expected 0, or 1e-06 to 1000")
            for value in (-1.0, 1e-300, 1e300, math.inf, math.nan)
        ),
        ({"top_k": -1}, "top_k: found -1, expected 0 or more"),
        *(({"top_p": value}, f"top_p: found {value}, expected 1e-06 to 1") for value in (0.0, 1e-300, 1.1, math.nan)),
        *(({"min_p": value}, f"min_p: found {value}, expected 0 to 1") for value in (-0.1, 2.0, math.nan)),
        ({"seed": LARGEST_SEED + 1}, f"seed: found {LARGEST_SEED + 1}, expected 0 to {LARGEST_SEED}"),
    ],
)
def test_settings_out_of_range_are_refused_with_the_range(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Sampling(**settings)
