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


def check_sequence(mesh: Mesh, seq_len: int, loss_chunks: int) -> None:
    """Raise ValueError where `sequence` does not divide a sequence, or `loss_chunks` not a part of one."""
    parts = mesh.shape["sequence"]
    if seq_len % parts:
        raise ValueError(f"mesh.sequence: found {parts}, expected a divisor of seq_len {seq_len}")
    if loss_chunks and seq_len // parts % loss_chunks:
        raise ValueError(
            f"loss_chunks: found {loss_chunks}, expected a divisor of seq_len {seq_len} / mesh.sequence {parts}, or 0"
        )


def check_model(mesh: Mesh, config: ModelConfig) -> None:
    """Raise ValueError where `tensor`, or `sequence` with it, does not divide a dimension that it splits."""
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
    check_mixers(mesh, config, "the model")


def check_mixers(mesh: Mesh, config: ModelConfig, whose: str) -> None:
    """Raise ValueError where a mesh that splits sequences does not divide the heads or channels of a token mixer."""
    if mesh.shape["sequence"] == 1:
        return
    # Heads of keys and values are repeated.
    names = ["num_heads"] * config.has_attention + ["hidden_size"] * (config.num_mlgru_layers > 0)
    for name in names:
        if (size := getattr(config, name)) % parts_of("mixed", mesh):
            raise ValueError(
                f"mesh.sequence: found {mesh.shape['sequence']} x mesh.tensor {mesh.shape['tensor']}, expected a "
                f"divisor of {whose}'s {name} {size}; use mesh.fsdp for the rest"
            )
