import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from jaxlm.parallel.distributed_config import DistributedConfig
from jaxlm.parallel.mesh import check_batch, check_model, check_sequence
from jaxlm.parallel.mesh_config import MESH_AXES, MeshConfig
from jaxlm.parallel.sharding import batch_share, tree_shardings
from tests.conftest import TINY, VARIANTS

pytestmark = pytest.mark.whole

ROOT = Path(__file__).parents[3]


def test_on_eight_simulated_devices():
    # A process of its own: the number of devices is fixed when jax starts.
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-n0",
        "-p",
        "no:cacheprovider",
        "-rP",
        "tests/jaxlm/parallel/eight_devices.py",
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({}, (8, 1, 1, 1)),
        ({"fsdp": -1}, (1, 8, 1, 1)),
        ({"fsdp": 4}, (2, 4, 1, 1)),
        ({"fsdp": -1, "tensor": 2}, (1, 4, 1, 2)),
        ({"data": 2, "fsdp": -1, "tensor": 2}, (2, 2, 1, 2)),
        ({"sequence": -1, "tensor": 2}, (1, 1, 4, 2)),
        ({"data": -1, "tensor": 8}, (1, 1, 1, 8)),
    ],
)
def test_what_is_not_given_takes_the_devices_that_are_left(settings, sizes):
    assert MeshConfig(**settings).sizes(8) == sizes


def test_a_mesh_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="mesh: found -1 more than once"):
        MeshConfig(data=-1, fsdp=-1)
    with pytest.raises(ValueError, match=r"mesh\.tensor: found 0, expected 1 or more, or -1"):
        MeshConfig(tensor=0)
    with pytest.raises(
        ValueError, match="found data -1 x fsdp 3 x sequence 1 x tensor 1, expected sizes that multiply to the 8"
    ):
        MeshConfig(fsdp=3).sizes(8)


class Device:
    """As much of a device as a mesh looks at."""

    def __init__(self, process_index):
        self.process_index = process_index


def mesh_over(processes, *sizes):
    """A mesh over two devices of each process."""
    devices = np.array([Device(number // 2) for number in range(2 * processes)], dtype=object)
    return MeshLike(devices.reshape(sizes), dict(zip(MESH_AXES, sizes, strict=True)))


class MeshLike:
    """As much of a mesh as the checks look at."""

    def __init__(self, devices, shape):
        self.devices, self.shape = devices, shape


def test_batches_and_widths_that_do_not_divide_are_refused():
    mesh = mesh_over(4, 2, 2, 1, 2)
    check_batch(mesh, 8, 2)
    with pytest.raises(ValueError, match="batch_size: found 12, expected a multiple of 8"):
        check_batch(mesh, 12, 2)
    check_model(mesh, TINY)
    with pytest.raises(ValueError, match=r"mesh\.tensor: found 4, expected a divisor of the model's num_kv_heads 2"):
        check_model(mesh_over(2, 1, 1, 1, 4), TINY)


@pytest.mark.parametrize(("hidden_size", "parts"), [(64, ("fsdp", "sequence")), (36, ("fsdp",)), (30, None)])
def test_a_matrix_is_split_by_the_axes_that_divide_it(hidden_size, parts):
    mesh = AbstractMesh((1, 4, 4, 1), MESH_AXES)
    shape = jax.ShapeDtypeStruct((32, hidden_size), np.float32)
    sharding = tree_shardings(mesh, {"up_proj": {"weight": shape}})["up_proj"]["weight"]
    assert sharding.spec == PartitionSpec("tensor", parts)


def test_sequences_that_do_not_divide_are_refused():
    mesh = mesh_over(4, 2, 1, 4, 1)
    check_sequence(mesh, 16, 2)
    with pytest.raises(ValueError, match=r"mesh\.sequence: found 4, expected a divisor of seq_len 18"):
        check_sequence(mesh, 18, 0)
    with pytest.raises(ValueError, match=r"loss_chunks: found 8, expected a divisor of seq_len 16 / mesh\.sequence 4"):
        check_sequence(mesh, 16, 8)
    check_model(mesh, TINY)  # two heads of keys are repeated
    with pytest.raises(ValueError, match=r"mesh\.sequence: found 8 x mesh\.tensor 1, .* the model's num_heads 4"):
        check_model(mesh_over(4, 1, 1, 8, 1), TINY)
    recurrent = dataclasses.replace(TINY, **VARIANTS["mlgru"])
    check_model(mesh_over(4, 1, 1, 8, 1), recurrent)
    with pytest.raises(ValueError, match=r"mesh\.sequence: found 3 x mesh\.tensor 2, .* the model's hidden_size 32"):
        check_model(mesh_over(3, 1, 1, 3, 2), recurrent)


@pytest.mark.parametrize(
    ("sizes", "share"),
    [
        ((8, 1, 1, 1), (0, 4)),
        ((1, 8, 1, 1), (0, 4)),
        ((2, 2, 1, 2), (0, 4)),
        ((2, 2, 2, 1), (0, 4)),
        ((2, 1, 1, 4), (0, 2)),
        ((2, 1, 2, 2), (0, 2)),
        ((1, 1, 1, 8), (0, 1)),
    ],
)
def test_processes_read_the_rows_of_their_devices(sizes, share):
    assert batch_share(mesh_over(4, *sizes)) == share


def test_rows_that_processes_share_in_part_are_refused():
    with pytest.raises(
        ValueError,
        match=r"mesh: found 3 devices that share rows \(mesh\.sequence 1 x mesh\.tensor 3\), expected a divisor",
    ):
        batch_share(mesh_over(3, 2, 1, 1, 3))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"coordinator_address": "a:1"}, "found some of coordinator_address, num_processes and process_id"),
        ({"coordinator_address": "a", "num_processes": 2, "process_id": 0}, "found 'a', expected host:port"),
        ({"coordinator_address": "a:1", "num_processes": 2, "process_id": 2}, "process_id: found 2, expected 0 to"),
        ({"auto": True, "num_processes": 2}, "found auto together with an address"),
        ({"timeout_s": 0}, "timeout_s: found 0, expected at least 1"),
    ],
)
def test_half_an_address_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        DistributedConfig(**settings)
