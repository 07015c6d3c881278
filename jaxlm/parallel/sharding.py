"""Where arrays live: the mesh of devices, and which of its axes splits which dimension.

Every dimension has a logical name; RULES map names to mesh axes. Parameters, optimizer state and ternary codes are
split over `fsdp` and `tensor`, a batch over `data` and `fsdp`, and XLA places the collectives.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax.linen.spmd import logical_to_mesh_axes
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.parameters import matrix_axes

MESH_AXES = ("data", "fsdp", "tensor")
# Logical name -> mesh axes. `wide` is the dimension inside a block: heads, the feed-forward's width, gates.
RULES = (
    ("batch", ("data", "fsdp")),
    ("embed", "fsdp"),
    ("wide", "tensor"),
    ("vocab", "tensor"),
)


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How the devices share the work. One of the three may be -1: the devices that the others leave."""

    data: int | None = None
    """Copies of the model, each with its part of the batch; by default as many as the other two leave room for."""
    fsdp: int = 1
    """Devices that split parameters and optimizer state, and the batch."""
    tensor: int = 1
    """Devices that split the width of every layer."""

    def __post_init__(self) -> None:
        sizes = self._given()
        for axis, size in zip(MESH_AXES, sizes, strict=True):
            if size < 1 and size != -1:
                raise ValueError(f"mesh.{axis}: found {size}, expected 1 or more, or -1 for what is left")
        if sizes.count(-1) > 1:
            raise ValueError("mesh: found -1 more than once, expected at most one axis that takes what is left")

    def sizes(self, num_devices: int) -> tuple[int, ...]:
        """Devices along (data, fsdp, tensor); raises ValueError where they do not multiply to `num_devices`."""
        given = self._given()
        fixed = math.prod(size for size in given if size != -1)
        found = tuple(num_devices // fixed if size == -1 else size for size in given)
        if math.prod(found) != num_devices:
            shape = " x ".join(f"{axis} {size}" for axis, size in zip(MESH_AXES, given, strict=True))
            raise ValueError(f"mesh: found {shape}, expected sizes that multiply to the {num_devices} devices")
        return found

    def _given(self) -> list[int]:
        # What is left is for `data`, unless another axis asks for it.
        data = self.data if self.data is not None else 1 if -1 in (self.fsdp, self.tensor) else -1
        return [data, self.fsdp, self.tensor]


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh over these devices, by default all there are. Raises ValueError where they cannot be shared out so."""
    devices = jax.devices() if devices is None else devices
    sizes = config.sizes(len(devices))
    return Mesh(np.asarray(devices).reshape(sizes), MESH_AXES)


def describe_mesh(mesh: Mesh) -> str:
    """A line on the devices and what they split."""
    shape = " x ".join(f"{axis} {mesh.shape[axis]}" for axis in MESH_AXES)
    devices, processes = mesh.devices.size, jax.process_count()
    return f"{devices} {jax.default_backend()} device(s) of {processes} process(es): {shape}"


def check_batch(mesh: Mesh, batch_size: int, grad_accumulation_steps: int) -> None:
    """Raise ValueError where a micro-batch does not divide over the mesh."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % (ways * grad_accumulation_steps):
        raise ValueError(
            f"batch_size: found {batch_size}, expected a multiple of {ways * grad_accumulation_steps} "
            f"(mesh.data {mesh.shape['data']} x mesh.fsdp {mesh.shape['fsdp']} x grad_accumulation_steps "
            f"{grad_accumulation_steps})"
        )


def check_model(mesh: Mesh, config: ModelConfig) -> None:
    """Raise ValueError where the mesh's `tensor` axis does not divide what it splits inside a block."""
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


def mesh_axes(*names: str | None) -> PartitionSpec:
    """The mesh axes that split dimensions of these logical names."""
    axes = logical_to_mesh_axes(names, RULES)
    assert axes is not None
    return axes


def constrain(x: Any, *names: str | None) -> Any:
    """Keep an activation split by the logical names of its dimensions, where there is a mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, mesh_axes(*names))


def gather_codes(codes: jax.Array, name: str) -> jax.Array:
    """The codes `[O, I]` of the linear layer of that name, whole along `fsdp` from here on, where there is a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or name not in matrix_axes():
        return codes
    names = tuple(None if logical == "embed" else logical for logical in matrix_axes()[name])
    return jax.lax.with_sharding_constraint(codes, _dividing_axes(mesh, names, codes.shape))


def target_platform() -> str:
    """The platform that a function is traced for: that of the mesh, which may be one to compile for, or the default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def batch_ways() -> int:
    """Devices that a batch is split over."""
    shape = jax.sharding.get_abstract_mesh().shape
    return math.prod(shape.get(axis, 1) for axis in ("data", "fsdp"))


def tree_shardings(mesh: Mesh, tree: Any) -> Any:
    """The sharding of every leaf of parameters, or of anything that holds trees of them (optimizer state, codes)."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: _leaf_sharding(mesh, path, leaf.shape), tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of arrays `[B, L]`: split by rows."""
    return NamedSharding(mesh, mesh_axes("batch", None))


def batch_share(mesh: Mesh) -> tuple[int, int]:
    """Which part of every batch this process's devices hold, and of how many parts.

    Processes that differ along `tensor` only hold the same one. Raises ValueError where two hold the same rows in part.
    """
    held: dict[int, set[int]] = {}
    for row, devices in enumerate(mesh.devices.reshape(-1, mesh.shape["tensor"])):
        for device in devices:
            held.setdefault(device.process_index, set()).add(row)
    parts = sorted({tuple(sorted(rows)) for rows in held.values()})
    if len({len(part) for part in parts}) > 1 or sum(map(len, parts)) != len(set().union(*parts)):
        raise ValueError(
            f"mesh.tensor: found {mesh.shape['tensor']}, expected a divisor or a multiple of the "
            f"{jax.local_device_count()} devices of each process"
        )
    return parts.index(tuple(sorted(held[jax.process_index()]))), len(parts)


def global_batch(mesh: Mesh, batch: Mapping[str, Any]) -> dict[str, Any]:
    """This process's share of a batch (see `batch_share`), as its part of arrays over all of the mesh."""
    if mesh.devices.size == 1:
        return dict(batch)  # a compiled step takes plain arrays with less ado
    sharding = batch_sharding(mesh)
    parts = batch_share(mesh)[1] if jax.process_count() > 1 else 1
    return {
        name: jax.make_array_from_process_local_data(sharding, rows, (len(rows) * parts, *rows.shape[1:]))
        for name, rows in batch.items()
    }


def place(tree: Any, shardings: Any) -> Any:
    """Arrays that every process has whole, split over the devices as asked."""

    def place_array(array: Any, sharding: NamedSharding) -> jax.Array:
        whole = np.asarray(array)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(place_array, tree, shardings)


def _leaf_sharding(mesh: Mesh, path: tuple[Any, ...], shape: tuple[int, ...]) -> NamedSharding:
    names = [name for key in path for name in _key_name(key).split(".")]
    axes = matrix_axes()
    logical = next((axes[name] for name in reversed(names) if name in axes), None)
    if logical is None or len(shape) < 2 or any("norm" in name for name in names):
        return NamedSharding(mesh, PartitionSpec())
    return NamedSharding(mesh, PartitionSpec(*[None] * (len(shape) - 2), *_dividing_axes(mesh, logical, shape[-2:])))


def _dividing_axes(mesh: Mesh | AbstractMesh, names: tuple[str | None, ...], shape: tuple[int, ...]) -> PartitionSpec:
    """Mesh axes of a matrix; a dimension that does not divide stays whole."""
    axes = zip(mesh_axes(*names), shape, strict=True)
    return PartitionSpec(*(axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in axes))


def _key_name(key: Any) -> str:
    return str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))
