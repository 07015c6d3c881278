"""The mesh of devices: made, described, and what has to divide it."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.parallel.mesh_config import MESH_AXES, MeshConfig
from jaxlm.parallel.sharding import parts_of


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Return the mesh over these devices, by default all. Raises ValueError where the sizes do not multiply to them."""
    devices = jax.devices() if devices is None else devices
    sizes = config.sizes(len(devices))
    return Mesh(np.asarray(devices).reshape(sizes), MESH_AXES)


def describe_mesh(mesh: Mesh) -> str:
    """Return a line on the devices and the mesh axes that split something."""
    shape = " x ".join(f"{axis} {mesh.shape[axis]}" for axis in MESH_AXES if mesh.shape[axis] > 1)
    devices, processes = mesh.devices.size, jax.process_count()
    line = f"{devices} {jax.default_backend()} device(s) of {processes} process(es)"
    return f"{line}: {shape}" if shape else line


def check_batch(mesh: Mesh, batch_size: int, grad_accumulation_steps: int) -> None:
    """Raise ValueError where a micro-batch does not divide over the mesh."""
    parts = parts_of("batch", mesh) * grad_accumulation_steps
    if batch_size % parts:
        raise ValueError(
            f"batch_size: found {batch_size}, expected a multiple of {parts} "
            f"(mesh.data {mesh.shape['data']} x mesh.fsdp {mesh.shape['fsdp']} x grad_accumulation_steps "
            f"{grad_accumulation_steps})"
        )


def check_sequence(mesh: Mesh, seq_len: int) -> None:
    """Raise ValueError where the `sequence` axis does not divide a sequence."""
    if seq_len % mesh.shape["sequence"]:
        raise ValueError(f"mesh.sequence: found {mesh.shape['sequence']}, expected a divisor of seq_len {seq_len}")


def check_model(mesh: Mesh, config: ModelConfig) -> None:
    """Raise ValueError where `tensor`, or `sequence` with it, does not divide a dimension that it splits."""
    by_tensor, by_both = ["intermediate_size"], []
    if config.has_attention:
        by_tensor += ["num_heads", "num_kv_heads"]
        by_both.append("num_heads")  # keys and values are repeated where there are too few
    if config.num_mlgru_layers:
        by_tensor.append("hidden_size")
        by_both.append("hidden_size")
    for name in by_tensor:
        if (size := getattr(config, name)) % mesh.shape["tensor"]:
            raise ValueError(
                f"mesh.tensor: found {mesh.shape['tensor']}, expected a divisor of the model's {name} {size}; "
                "use mesh.fsdp for the rest"
            )
    for name in by_both:
        if (size := getattr(config, name)) % parts_of("mixed", mesh):
            raise ValueError(
                f"mesh.sequence: found {mesh.shape['sequence']} x mesh.tensor {mesh.shape['tensor']}, expected a "
                f"divisor of the model's {name} {size}; use mesh.fsdp for the rest"
            )
