"""The learnable activation: a rational function per group of channels, the same code for numpy, JAX and MLX.

P(x / 6) / (1 + |Q(x / 6)|) with P of degree 5 and Q of degree 4 without a constant (safe Pade activation units, arXiv
1907.06732; shared by groups of channels as in KAT, arXiv 2409.10594). The divisor is never 0. The coefficients are
float32, and so is the computation.
"""

from typing import Any

import numpy as np

# Name of the activation, and of the module that holds its coefficients.
RATIONAL = "rational"
GROUPS = 8
# The polynomials are of x / 6. Of x itself the coefficients would lie four decades apart, and a step of Adam, as large
# for each, would change the small ones by many times their size.
WIDTH = 6.0
# SiLU between -6 and 6, within 2.2e-4: the least-squares fit that tests/jaxlm/common/architecture/test_rational.py does
# again. Coefficients of 1, u, ... u^5, and of u, ... u^4, where u = x / 6.
SILU_NUMERATOR = (6.8592275e-05, 3.0, 8.992005, 11.268271, 6.9475899, 1.7517537)
SILU_DENOMINATOR = (0.0, 3.7560903, 0.0, 0.58391791)
SHAPES = {"numerator": (GROUPS, len(SILU_NUMERATOR)), "denominator": (GROUPS, len(SILU_DENOMINATOR))}


def silu_coefficients(name: str) -> np.ndarray:
    """Return the float32 coefficients of SiLU for all groups: `[8, 6]` of the `numerator`, `[8, 4]` of the
    `denominator`."""
    row = SILU_NUMERATOR if name == "numerator" else SILU_DENOMINATOR
    return np.tile(np.array(row, np.float32), (GROUPS, 1))


def rational(x: Any, numerator: Any, denominator: Any, xp: Any) -> Any:
    """Return P(x / 6) / (1 + |Q(x / 6)|) of x `[..., I]`, whose group g is the channels g I / 8 to (g + 1) I / 8.

    `xp` is numpy, jax.numpy or mlx.core.
    """
    wide = x.astype(xp.float32) / WIDTH
    # Coefficients per channel, and not channels per group: a mesh splits the channels of x.
    shape = (*[1] * (len(x.shape) - 1), x.shape[-1], -1)
    p, q = (xp.repeat(each, x.shape[-1] // GROUPS, axis=0).reshape(shape) for each in (numerator, denominator))
    above, below = p[..., 5], q[..., 3]  # by Horner's rule
    for power in (4, 3, 2, 1, 0):
        above = above * wide + p[..., power]
    for power in (2, 1, 0):
        below = below * wide + q[..., power]
    return (above / (1 + xp.abs(below * wide))).astype(x.dtype)
