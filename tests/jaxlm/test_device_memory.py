from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

import jaxlm.device_memory
from jaxlm.device_memory import GIB, available_bytes, check_fits


def program(state: float, activations: float) -> SimpleNamespace:
    """A compiled step that needs so many GiB."""
    analysis = SimpleNamespace(argument_size_in_bytes=state * GIB, temp_size_in_bytes=activations * GIB)
    return SimpleNamespace(memory_analysis=lambda: analysis)


@pytest.mark.parametrize(
    ("state", "activations", "way_out"),
    [
        (1, 8, "batch_size 12 would fit"),
        (1, 80, "set --remat blocks, a shorter seq_len or a smaller preset"),
        (5, 1, "choose a smaller preset, or split the state with --mesh.fsdp"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_way_out(monkeypatch, state, activations, way_out):
    monkeypatch.setattr(jaxlm.device_memory, "available_bytes", lambda device: 4 * GIB)
    message = rf"memory: .* needs {state + activations:.2f} GiB on each device .* found 4.00 GiB; .*{way_out}"
    with pytest.raises(ValueError, match=message):
        check_fits(program(state, activations), batch_size=32, ways=4, device=None)


def test_what_fits_is_not_refused(monkeypatch):
    monkeypatch.setattr(jaxlm.device_memory, "available_bytes", lambda device: 4 * GIB)
    check_fits(program(1, 3), 32, 4, None)
    monkeypatch.setattr(jaxlm.device_memory, "available_bytes", lambda device: None)
    check_fits(program(1, 30), 32, 4, None)


def test_this_machine_has_memory_for_a_number():
    device = jax.devices()[0]
    available = available_bytes(device)
    assert available is not None and 2**20 < available < 2**50
    check_fits(jax.jit(jnp.sin).lower(1.0).compile(), 1, 1, device)
