import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.ops.machine import cpu


@pytest.mark.parametrize("described", ["flags : avx512f avx512_vnni fma\n", "flags : avx2\n", None])
def test_features_are_read_from_cpuinfo(described, tmp_path, monkeypatch):
    info = tmp_path / "cpuinfo"
    if described is not None:
        info.write_text(described)
    monkeypatch.setattr(cpu, "CPU_INFO", info)
    found = cpu.processor_features.__wrapped__()
    assert found == tuple(word for word in (described or "").split() if word.startswith("avx"))
    monkeypatch.setattr(cpu, "processor_features", lambda: found)
    assert cpu.has_vnni() == ("avx512_vnni" in found)


def test_options_are_for_processors_that_they_were_measured_on(monkeypatch):
    monkeypatch.setattr(cpu, "has_vnni", lambda: True)
    monkeypatch.setattr(cpu, "_compiler_knows_options", lambda: True)
    assert cpu.onednn_options("cpu")
    assert not cpu.onednn_options("gpu")
    monkeypatch.setattr(cpu, "has_vnni", lambda: False)
    assert not cpu.onednn_options("cpu")


def test_an_option_that_the_compiler_does_not_know_is_left_out(monkeypatch):
    monkeypatch.setattr(cpu, "_ONEDNN", {"xla_cpu_no_such_option": True})
    assert not cpu._compiler_knows_options.__wrapped__()


def test_products_stay_as_exact_with_options(monkeypatch):
    monkeypatch.setattr(cpu, "has_vnni", lambda: True)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 33, 40)).astype(np.float32), rng.normal(size=(17, 40)).astype(np.float32)
    product = jax.jit(lambda a, b: jnp.einsum("bli,oi->blo", a, b), compiler_options=cpu.onednn_options("cpu"))
    np.testing.assert_allclose(product(a, b), np.einsum("bli,oi->blo", a, b), rtol=1e-5, atol=1e-5)
