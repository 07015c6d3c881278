"""The settings of the mesh of devices: its axes, and their sizes."""

import math
from dataclasses import dataclass

MESH_AXES = ("data", "fsdp", "sequence", "tensor")


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """The sizes of the mesh axes. One axis may be -1: it takes all remaining devices (by default `data`)."""

    data: int | None = None
    """Copies of the model, each with its part of the batch; by default all remaining devices."""
    fsdp: int = 1
    """Devices that split parameters and optimizer state, and the batch."""
    sequence: int = 1
    """Devices that split the tokens of every sequence, for long ones, and parameters and optimizer state."""
    tensor: int = 1
    """Devices that split the width of every layer."""

    def __post_init__(self) -> None:
        sizes = self._given()
        for axis, size in zip(MESH_AXES, sizes, strict=True):
            if size < 1 and size != -1:
                raise ValueError(f"mesh.{axis}: found {size}, expected 1 or more, or -1 for all remaining devices")
        if sizes.count(-1) > 1:
            raise ValueError(
                "mesh: found -1 more than once, expected at most one axis that takes all remaining devices"
            )

    def sizes(self, num_devices: int) -> tuple[int, ...]:
        """Return the devices along MESH_AXES. Raises ValueError where they do not make `num_devices`."""
        given = self._given()
        fixed = math.prod(size for size in given if size != -1)
        found = tuple(num_devices // fixed if size == -1 else size for size in given)
        if math.prod(found) != num_devices:
            shape = " x ".join(f"{axis} {size}" for axis, size in zip(MESH_AXES, given, strict=True))
            raise ValueError(f"mesh: found {shape}, expected sizes that multiply to the {num_devices} devices")
        return found

    def _given(self) -> list[int]:
        # `data` takes the remaining devices, unless another axis does.
        others = [self.fsdp, self.sequence, self.tensor]
        data = self.data if self.data is not None else 1 if -1 in others else -1
        return [data, *others]
