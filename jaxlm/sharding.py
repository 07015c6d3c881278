"""Where arrays live: the mesh of devices, and which of its axes splits which dimension.

Every dimension has a logical name; RULES map names to mesh axes. Parameters, optimizer state and ternary codes are
split over `fsdp` and `tensor`, a batch over `data` and `fsdp`, and XLA places the collectives.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax.linen.spmd import logical_to_mesh_axes
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor")
# Logical name -> mesh axes. `wide` is the dimension inside a block: heads, the feed-forward's width, gates.
RULES = (
    ("batch", ("data", "fsdp")),
    ("embed", "fsdp"),
    ("wide", "tensor"),
    ("vocab", "tensor"),
)
# Last module and name of a parameter -> its logical dimensions; what is not listed (norms, scales) is small and whole.
_MATRICES = {
    "embed_tokens": ("vocab", "embed"),
    "lm_head": ("vocab", "embed"),
    "o_proj": ("embed", "wide"),
    "down_proj": ("embed", "wide"),
} | dict.fromkeys(
    ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "i_proj", "f_proj", "g_proj"), ("wide", "embed")
)


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How the devices share the work. One of the three may be -1: the devices that the others leave."""

    data: int = -1
    """Copies of the model, each with its part of the batch."""
    fsdp: int = 1
    """Devices that split parameters and optimizer state, and the batch."""
    tensor: int = 1
    """Devices that split the width of every layer."""

    def __post_init__(self) -> None:
        sizes = [getattr(self, axis) for axis in MESH_AXES]
        for axis, size in zip(MESH_AXES, sizes, strict=True):
            if size < 1 and size != -1:
                raise ValueError(f"mesh.{axis}: found {size}, expected 1 or more, or -1 for what is left")
        if sizes.count(-1) > 1:
            raise ValueError("mesh: found -1 more than once, expected at most one axis that takes what is left")

    def sizes(self, num_devices: int) -> tuple[int, ...]:
        """Devices along (data, fsdp, tensor); raises ValueError where they do not multiply to `num_devices`."""
        given = [getattr(self, axis) for axis in MESH_AXES]
        fixed = math.prod(size for size in given if size != -1)
        found = tuple(num_devices // fixed if size == -1 else size for size in given)
        if math.prod(found) != num_devices:
            shape = " x ".join(f"{axis} {size}" for axis, size in zip(MESH_AXES, given, strict=True))
            raise ValueError(f"mesh: found {shape}, expected sizes that multiply to the {num_devices} devices")
        return found


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh over these devices, by default all there are. Raises ValueError where they cannot be shared out so."""
    devices = jax.devices() if devices is None else devices
    sizes = config.sizes(len(devices))
    return Mesh(np.asarray(devices).reshape(sizes), MESH_AXES)


def check_batch(mesh: Mesh, batch_size: int, grad_accumulation_steps: int) -> None:
    """Raise ValueError where a micro-batch does not divide over the mesh."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % (ways * grad_accumulation_steps):
        raise ValueError(
            f"batch_size: found {batch_size}, expected a multiple of {ways * grad_accumulation_steps} "
            f"(mesh.data {mesh.shape['data']} x mesh.fsdp {mesh.shape['fsdp']} x grad_accumulation_steps "
            f"{grad_accumulation_steps})"
        )


def constrain(x: Any, *names: str | None) -> Any:
    """Keep an activation split by the logical names of its dimensions, where there is a mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, _mesh_axes(*names))


def gather_codes(codes: jax.Array, name: str) -> jax.Array:
    """The codes `[O, I]` of the linear layer of that name, whole along `fsdp` from here on, where there is a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or name not in _MATRICES:
        return codes
    names = tuple(None if logical == "embed" else logical for logical in _MATRICES[name])
    return jax.lax.with_sharding_constraint(codes, _dividing_axes(mesh, names, codes.shape))


def batch_ways() -> int:
    """Devices that a batch is split over."""
    shape = jax.sharding.get_abstract_mesh().shape
    return math.prod(shape.get(axis, 1) for axis in ("data", "fsdp"))


def tree_shardings(mesh: Mesh, tree: Any) -> Any:
    """The sharding of every leaf of parameters, or of anything that holds trees of them (optimizer state, codes)."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: _leaf_sharding(mesh, path, leaf.shape), tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of arrays `[B, L]`: split by rows."""
    return NamedSharding(mesh, _mesh_axes("batch", None))


def global_batch(mesh: Mesh, batch: Any) -> Any:
    """This process's rows of a batch, as its part of arrays over all of the mesh."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def _mesh_axes(*names: str | None) -> PartitionSpec:
    axes = logical_to_mesh_axes(names, RULES)
    assert axes is not None
    return axes


def _leaf_sharding(mesh: Mesh, path: tuple[Any, ...], shape: tuple[int, ...]) -> NamedSharding:
    names = [name for key in path for name in _key_name(key).split(".")]
    logical = next((_MATRICES[name] for name in reversed(names) if name in _MATRICES), None)
    if logical is None or len(shape) < 2 or any("norm" in name for name in names):
        return NamedSharding(mesh, PartitionSpec())
    return NamedSharding(mesh, PartitionSpec(*[None] * (len(shape) - 2), *_dividing_axes(mesh, logical, shape[-2:])))


def _dividing_axes(mesh: Mesh | AbstractMesh, names: tuple[str | None, ...], shape: tuple[int, ...]) -> PartitionSpec:
    """Mesh axes of a matrix; a dimension that does not divide stays whole."""
    axes = zip(_mesh_axes(*names), shape, strict=True)
    return PartitionSpec(*(axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in axes))


def _key_name(key: Any) -> str:
    return str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))
