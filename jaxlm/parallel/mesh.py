"""The mesh of devices: its axes, its size, and what has to divide it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxlm.common.architecture.config import ModelConfig

MESH_AXES = ("data", "fsdp", "tensor")


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """The sizes of the mesh axes. One axis may be -1: it takes all remaining devices (by default `data`)."""

    data: int | None = None
    """Copies of the model, each with its part of the batch; by default all remaining devices."""
    fsdp: int = 1
    """Devices that split parameters and optimizer state, and the batch."""
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
        """Return the devices along (data, fsdp, tensor). Raises ValueError where they do not make `num_devices`."""
        given = self._given()
        fixed = math.prod(size for size in given if size != -1)
        found = tuple(num_devices // fixed if size == -1 else size for size in given)
        if math.prod(found) != num_devices:
            shape = " x ".join(f"{axis} {size}" for axis, size in zip(MESH_AXES, given, strict=True))
            raise ValueError(f"mesh: found {shape}, expected sizes that multiply to the {num_devices} devices")
        return found

    def _given(self) -> list[int]:
        # `data` takes the remaining devices, unless another axis does.
        data = self.data if self.data is not None else 1 if -1 in (self.fsdp, self.tensor) else -1
        return [data, self.fsdp, self.tensor]


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Return the mesh over these devices, by default all. Raises ValueError where the sizes do not multiply to them."""
    devices = jax.devices() if devices is None else devices
    sizes = config.sizes(len(devices))
    return Mesh(np.asarray(devices).reshape(sizes), MESH_AXES)


def describe_mesh(mesh: Mesh) -> str:
    """Return a line on the devices and the mesh axes."""
    shape = " x ".join(f"{axis} {mesh.shape[axis]}" for axis in MESH_AXES)
    devices, processes = mesh.devices.size, jax.process_count()
    return f"{devices} {jax.default_backend()} device(s) of {processes} process(es): {shape}"


def check_batch(mesh: Mesh, batch_size: int, grad_accumulation_steps: int) -> None:
    """Raise ValueError where a micro-batch does not divide over the mesh."""
    data_parallel_size = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % (data_parallel_size * grad_accumulation_steps):
        raise ValueError(
            f"batch_size: found {batch_size}, expected a multiple of {data_parallel_size * grad_accumulation_steps} "
            f"(mesh.data {mesh.shape['data']} x mesh.fsdp {mesh.shape['fsdp']} x grad_accumulation_steps "
            f"{grad_accumulation_steps})"
        )


def check_model(mesh: Mesh, config: ModelConfig) -> None:
    """Raise ValueError where the `tensor` axis does not divide a dimension that it splits."""
    names = ["intermediate_size"]
    if config.has_attention:
        names += ["num_heads", "num_kv_heads"]
    if config.num_mlgru_layers:
        names.append("hidden_size")
    for name in names:
        if (size := getattr(config, name)) % mesh.shape["tensor"]:
            raise ValueError(
                f"mesh.tensor: found {mesh.shape['tensor']}, expected a divisor of the model's {name} {size}; "
                "use mesh.fsdp for the rest"
            )
