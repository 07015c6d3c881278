"""Sharding: the mesh axes that split each dimension of an array.

Every dimension has a logical name; RULES map names to mesh axes. Parameters, optimizer state and ternary codes are
split over `fsdp`, `sequence` and `tensor`, a batch over `data` and `fsdp`, the tokens of a sequence over `sequence`,
and XLA places the collectives.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.linen.spmd import logical_to_mesh_axes
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from jaxlm.common.architecture.parameters import matrix_axes

# Memory of the host that a device copies from by itself.
HOST_MEMORY = "pinned_host"
# Logical name -> mesh axes. `wide` is the dimension inside a block: heads, the feed-forward's width, gates; `mixed` is
# that of a token mixer while it reads whole sequences. `tokens` has an entry for each device that holds a part of rows
# and lengths.
RULES = (
    ("batch", ("data", "fsdp")),
    ("length", "sequence"),
    ("tokens", ("data", "fsdp", "sequence")),
    ("mixed", ("tensor", "sequence")),
    ("embed", ("fsdp", "sequence")),
    ("wide", "tensor"),
    ("vocab", "tensor"),
)


def mesh_axes(*names: str | None) -> PartitionSpec:
    """Return the mesh axes that split dimensions of these logical names."""
    axes = logical_to_mesh_axes(names, RULES)
    assert axes is not None
    return axes


def constrain(x: Any, *names: str | None) -> Any:
    """Constrain an activation to be split by the logical names of its dimensions, where there is a mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, mesh_axes(*names))


def all_gather(matrix: jax.Array, name: str) -> jax.Array:
    """Return a matrix `[O, I]` of the linear layer `name`, all-gathered along `embed` where a mesh splits it."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or name not in matrix_axes():
        return matrix
    names = tuple(None if logical == "embed" else logical for logical in matrix_axes()[name])
    return jax.lax.with_sharding_constraint(matrix, _dividing_axes(mesh, names, matrix.shape))


def constrain_matrix(matrix: jax.Array, name: str) -> jax.Array:
    """Constrain a matrix of the linear layer `name` to be split as parameters of its shape are."""
    return jax.lax.with_sharding_constraint(
        matrix, _dividing_axes(jax.sharding.get_abstract_mesh(), matrix_axes()[name], matrix.shape)
    )


def is_split_alike(name: str, *shapes: tuple[int, ...]) -> bool:
    """Return True if there is a mesh that splits matrices of the layer `name` along `embed`, in all shapes alike."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or name not in matrix_axes() or parts_of("embed") == 1:
        return False
    return len({_dividing_axes(mesh, matrix_axes()[name], shape) for shape in shapes}) == 1


def target_platform() -> str:
    """Return the platform that a function is traced for: that of the mesh, perhaps compile-only, or the default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def parts_of(name: str, mesh: Mesh | AbstractMesh | None = None) -> int:
    """Return the number of parts that a mesh splits a dimension of this logical name into, by default the mesh that is
    set."""
    return _size(jax.sharding.get_abstract_mesh() if mesh is None else mesh, dict(RULES)[name])


def tree_shardings(mesh: Mesh, tree: Any) -> Any:
    """Return the sharding of every leaf of parameters, or of trees that contain them (optimizer state, codes)."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: _leaf_sharding(mesh, path, leaf.shape), tree)


def on_host(shardings: Any, tree: Any) -> Any:
    """Return the shardings of a tree with its arrays in the memory of the host; scalars stay on the devices."""

    def moved(sharding: NamedSharding, leaf: Any) -> NamedSharding:
        return sharding.with_memory_kind(HOST_MEMORY) if leaf.ndim else sharding

    return jax.tree.map(moved, shardings, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of arrays `[B, ...]`: split by rows. Their tokens, which are small, are not split."""
    return NamedSharding(mesh, mesh_axes("batch"))


def batch_share(mesh: Mesh) -> tuple[int, int]:
    """Return the part of every batch that this process's devices hold, as (index, number of parts).

    Processes that differ along `sequence` and `tensor` only hold the same one. Raises ValueError where two hold
    the same rows in part.
    """
    held: dict[int, set[int]] = {}
    sharing = mesh.shape["sequence"] * mesh.shape["tensor"]
    for row, devices in enumerate(mesh.devices.reshape(-1, sharing)):
        for device in devices:
            held.setdefault(device.process_index, set()).add(row)
    parts = sorted({tuple(sorted(rows)) for rows in held.values()})
    if len({len(part) for part in parts}) > 1 or sum(map(len, parts)) != len(set().union(*parts)):
        raise ValueError(
            f"mesh: found {sharing} devices that share rows (mesh.sequence {mesh.shape['sequence']} x mesh.tensor "
            f"{mesh.shape['tensor']}), expected a divisor or a multiple of the {jax.local_device_count()} devices of "
            "each process"
        )
    return parts.index(tuple(sorted(held[jax.process_index()]))), len(parts)


def global_batch(mesh: Mesh, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return this process's share of a batch (see `batch_share`) as its part of arrays over the whole mesh."""
    if mesh.devices.size == 1:
        return dict(batch)  # a compiled step takes plain arrays at less cost
    sharding = batch_sharding(mesh)
    parts = batch_share(mesh)[1] if jax.process_count() > 1 else 1
    return {
        name: jax.make_array_from_process_local_data(sharding, rows, (len(rows) * parts, *rows.shape[1:]))
        for name, rows in batch.items()
    }


def place(tree: Any, shardings: Any) -> Any:
    """Split arrays that every process holds in full over the devices."""

    def place_array(array: Any, sharding: NamedSharding) -> jax.Array:
        whole = np.asarray(array)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(place_array, tree, shardings)


def _leaf_sharding(mesh: Mesh, path: tuple[Any, ...], shape: tuple[int, ...]) -> NamedSharding:
    names = [name for key in path for name in _key_name(key).split(".")]
    axes = matrix_axes()
    logical = next((axes[name] for name in reversed(names) if name in axes), None)
    # A bias is split as the outputs of its matrix.
    logical = logical[:1] if logical and names[-1] == "bias" else logical
    if logical is None or len(shape) < len(logical) or any("norm" in name for name in names):
        return NamedSharding(mesh, PartitionSpec())
    last = len(logical)
    axes = _dividing_axes(mesh, logical, shape[-last:])
    return NamedSharding(mesh, PartitionSpec(*[None] * (len(shape) - last), *axes))


def _dividing_axes(mesh: Mesh | AbstractMesh, names: tuple[str | None, ...], shape: tuple[int, ...]) -> PartitionSpec:
    """Return the mesh axes of a matrix; a dimension is split by the first of its axes, as far as they divide it."""
    found = []
    for axes, size in zip(mesh_axes(*names), shape, strict=True):
        axes = (axes,) if isinstance(axes, str) else axes or ()
        count = next(count for count in range(len(axes), -1, -1) if size % _size(mesh, axes[:count]) == 0)
        found.append(axes[:count] or None)
    return PartitionSpec(*found)


def _size(mesh: Mesh | AbstractMesh, axes: str | tuple[str, ...]) -> int:
    """Return the number of parts that some axes of a mesh make; an axis that it lacks makes one."""
    return math.prod(mesh.shape.get(axis, 1) for axis in ([axes] if isinstance(axes, str) else axes))


def _key_name(key: Any) -> str:
    return str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))
