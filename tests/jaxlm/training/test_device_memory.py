from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

import jaxlm.training.device_memory
from jaxlm.training.device_memory import GIB, check_state_fits, check_step_fits, free_bytes


@pytest.fixture
def four_gib_free(monkeypatch):
    monkeypatch.setattr(jaxlm.training.device_memory, "free_bytes", lambda device: 4 * GIB)


def program(gib: float) -> SimpleNamespace:
    """A compiled step that needs so much beside its state."""
    sizes = {"temp_size_in_bytes": gib * GIB} | dict.fromkeys(
        ("argument_size_in_bytes", "output_size_in_bytes", "alias_size_in_bytes"), 0
    )
    return SimpleNamespace(memory_analysis=lambda: SimpleNamespace(**sizes))


@pytest.mark.parametrize(
    ("gib", "parts", "way_out"),
    [(8, 1, "batch_size 16 would fit"), (6, 2, "batch_size 16 would fit"), (80, 1, "set --remat blocks")],
)
def test_a_step_that_does_not_fit_is_refused_with_a_way_out(four_gib_free, gib, parts, way_out):
    message = rf"memory: a step with batch_size 32 needs {gib}.00 GiB .* found 4.00 GiB free; {way_out}"
    with pytest.raises(ValueError, match=message):
        check_step_fits(program(gib), 32, data_parallel_size=4, grad_accumulation_steps=parts, device=None)
    check_step_fits(program(3.9), 32, data_parallel_size=4, grad_accumulation_steps=parts, device=None)


def test_a_state_that_does_not_fit_is_refused(four_gib_free):
    here = SingleDeviceSharding(jax.devices()[0])
    small = jax.ShapeDtypeStruct((GIB,), jnp.int8, sharding=here)
    large = jax.ShapeDtypeStruct((GIB,), jnp.float32, sharding=here)
    with pytest.raises(ValueError, match=r"memory: .* need 5.00 GiB on each device, found 4.00 GiB free; choose"):
        check_state_fits([small, large], None)
    check_state_fits([small], None)


def test_a_device_that_does_not_say_refuses_nothing(monkeypatch):
    monkeypatch.setattr(jaxlm.training.device_memory, "free_bytes", lambda device: None)
    check_step_fits(program(10**6), 1, 1, 1, None)


def test_this_machine_says_what_is_free():
    free = free_bytes(jax.devices()[0])
    assert free is not None and 2**20 < free < 2**50
    check_step_fits(jax.jit(jnp.sin).lower(1.0).compile(), 1, 1, 1, jax.devices()[0])
