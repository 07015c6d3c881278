"""Abilities of a graphics processor."""

from typing import Any

# Compute capability of NVIDIA's first GPUs with bfloat16, cuDNN's fused attention, and enough memory for our tiles.
AMPERE = 8.0


def compute_capability(device: Any) -> float | None:
    """Return the compute capability of an NVIDIA GPU, such as 9.0; None for any other device."""
    try:
        return float(device.compute_capability)
    except (AttributeError, ValueError):  # for AMD's it is a name
        return None


def is_ampere(device: Any) -> bool:
    """Return True if the device is an NVIDIA GPU of the Ampere generation or a later one."""
    return (compute_capability(device) or 0) >= AMPERE
