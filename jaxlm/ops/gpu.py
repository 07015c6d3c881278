"""What a graphics processor can do."""

from typing import Any

# NVIDIA's first with bfloat16, with cuDNN's fused attention, and with the memory that a tile of ours takes.
AMPERE = 8.0


def compute_capability(device: Any) -> float | None:
    """An NVIDIA GPU's, such as 9.0; None for any other device."""
    try:
        return float(device.compute_capability)
    except (AttributeError, ValueError):  # of AMD's it is a name
        return None


def is_ampere(device: Any) -> bool:
    """Whether it is an NVIDIA GPU of that generation or a later one."""
    return (compute_capability(device) or 0) >= AMPERE
