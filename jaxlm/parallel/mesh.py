"""The mesh of devices: made, described, and what has to divide it."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.parallel.mesh_config import MESH_AXES, MeshConfig


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
