from types import SimpleNamespace

import jax
import pytest

from jaxlm.ops.machine.gpu import compute_capability, is_ampere


@pytest.mark.parametrize(
    ("given", "capability", "ampere"),
    [("9.0", 9.0, True), ("8.0", 8.0, True), ("7.5", 7.5, False), ("gfx90a", None, False)],
)
def test_only_nvidia_gpus_have_a_compute_capability(given, capability, ampere):
    device = SimpleNamespace(compute_capability=given)
    assert compute_capability(device) == capability
    assert is_ampere(device) == ampere


def test_a_cpu_has_no_compute_capability():
    assert compute_capability(jax.devices("cpu")[0]) is None and not is_ampere(jax.devices("cpu")[0])
