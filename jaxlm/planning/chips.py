"""Data sheets of TPU chips, and the slices in which they are rented."""

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One chip. Rates are the peaks of the data sheet, per second."""

    name: str
    hbm_bytes: int
    hbm_bandwidth: float
    """Bytes read or written per second."""
    bfloat16_flops: float
    int8_flops: float
    ici_bandwidth: float
    """Bytes per second over all links of the chip to its neighbours, both directions together."""
    slices: tuple[str, ...]
    """Shapes of slices, smallest first."""
    chip_config_name: str = "default"
    """Option of the compiler that makes one chip one device."""

    @property
    def receive_bandwidth(self) -> float:
        """Bytes per second that the chip can receive from its neighbours: one direction of every link."""
        return self.ici_bandwidth / 2


_SQUARE = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBE = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
# Sources: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, "system architecture", read in 2026. Not on those pages:
# int8 of v5p (twice bfloat16, as an earlier version of the page had it) and links of v4 (6 of 50 GB/s each way, arXiv
# 2304.01433).
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 32 * GIB, 1200e9, 275e12, 275e12, 600e9, _CUBE, chip_config_name="megacore"),
        Chip("v5e", 16 * GIB, 819e9, 197e12, 393e12, 400e9, _SQUARE),
        Chip("v5p", 95 * GIB, 2765e9, 459e12, 918e12, 1200e9, _CUBE),
        Chip("v6e", 32 * GIB, 1638e9, 918e12, 1836e12, 800e9, _SQUARE),
    )
}


def chip_of(topology: str) -> Chip:
    """Return the chip of a topology such as v5e:16x16. Raises ValueError where the chip is unknown."""
    name = topology.partition(":")[0]
    if name not in CHIPS:
        raise ValueError(
            f"topology: found {topology!r}, expected a chip of {', '.join(CHIPS)} and a shape, such as v5e:16x16"
        )
    return CHIPS[name]
