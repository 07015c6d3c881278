import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.ops import int8_product as module
from jaxlm.ops.int8_product import int8_product, scaled_product
from jaxlm.ops.machine.cpu import processor_features
from jaxlm.ops.machine.routes import Route
from jaxlm.ops.native.build import find_compiler
from jaxlm.ops.native.scaled_product import load_library
from jaxlm.parallel.mesh import make_mesh
from jaxlm.parallel.mesh_config import MESH_AXES, MeshConfig


def _operands(shape, outputs):
    rng = np.random.default_rng(0)
    x = rng.integers(-128, 128, shape).astype(np.int8)
    codes = rng.integers(-1, 2, (outputs, shape[-1])).astype(np.int8)
    return x, codes, np.einsum("...i,oi->...o", x.astype(np.int64), codes.astype(np.int64))


@pytest.fixture
def unsigned(monkeypatch):
    """Choose products of unsigned bytes, on any processor, for any number of rows."""
    monkeypatch.setattr(module, "unsigned_route", lambda: Route(True, ""))
    monkeypatch.setattr(module, "_FEWEST_ROWS", 1)


@pytest.mark.parametrize("shape", [(1, 5), (3, 64), (2, 7, 33), (2, 1, 16)])
@pytest.mark.parametrize("is_unsigned", [True, False])
def test_products_are_exact(shape, is_unsigned, unsigned, monkeypatch):
    monkeypatch.setattr(module, "unsigned_route", lambda: Route(is_unsigned, ""))
    x, codes, expected = _operands(shape, 9)
    found = jax.jit(int8_product)(x, codes)
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, expected)


def test_extremes_do_not_saturate(unsigned):
    for value, code in ((-128, 1), (127, 1), (-128, -1), (127, -1)):
        x, codes = np.full((8, 512), value, np.int8), np.full((8, 512), code, np.int8)
        np.testing.assert_array_equal(jax.jit(int8_product)(x, codes), np.full((8, 8), 512 * value * code))


def test_operands_reach_the_compiler_as_bytes(unsigned):
    """The program holds the promise of speed: a product of bytes, which the processor multiplies four at a time.

    Integers widened before the product give the same sums, so no number shows the difference.
    """
    x, codes, _ = _operands((16, 32), 8)
    lowered = jax.jit(int8_product).lower(x, codes).as_text()
    assert "(tensor<16x32xui8>, tensor<8x32xi8>) -> tensor<16x8xi32>" in lowered


def test_few_rows_stay_signed(monkeypatch):
    """The program holds the promise that the product of a few rows, as in generation, is not shifted to unsigned."""
    monkeypatch.setattr(module, "unsigned_route", lambda: Route(True, ""))
    x, codes, expected = _operands((2, 3, 32), 8)
    assert "ui8" not in jax.jit(int8_product).lower(x, codes).as_text()
    np.testing.assert_array_equal(jax.jit(int8_product)(x, codes), expected)


def test_rows_and_codes_may_be_mapped_over(unsigned):
    x, codes, expected = map(jnp.asarray, _operands((2, 7, 33), 9))
    np.testing.assert_array_equal(jax.vmap(int8_product, in_axes=(1, None), out_axes=1)(x, codes), expected)
    both = jnp.stack([codes, -codes])
    np.testing.assert_array_equal(jax.vmap(int8_product, in_axes=(None, 0))(x, both), [expected, -expected])
    np.testing.assert_array_equal(jax.vmap(int8_product)(x, both), [expected[0], -expected[1]])


def _scaled(shape, outputs):
    x, codes, products = _operands(shape, outputs)
    scale = np.random.default_rng(1).uniform(0.1, 2, (*shape[:-1], 1)).astype(np.float32)
    return (x, codes, scale), products.astype(np.float32) * scale


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_products_are_scaled_in_float32(dtype):
    operands, expected = _scaled((2, 64, 33), 9)
    found = jax.jit(scaled_product, static_argnums=3)(*operands, dtype)
    np.testing.assert_array_equal(found, jnp.asarray(expected).astype(dtype))


def test_one_gpu_multiplies_whole_tiles_in_a_kernel(monkeypatch):
    monkeypatch.setattr(module, "is_ampere", lambda device: True)
    monkeypatch.setattr(module, "native_route", lambda: Route(False, ""))
    operands, expected = _scaled((2, 128, 128), 128)

    def has_kernel(operands):
        return "pallas_call" in str(jax.make_jaxpr(lambda *x: scaled_product(*x, jnp.float32))(*operands))

    assert has_kernel(operands)
    # On a CPU the same program runs without the kernel.
    np.testing.assert_array_equal(jax.jit(scaled_product, static_argnums=3)(*operands, jnp.float32), expected)
    assert not has_kernel(_scaled((2, 100, 128), 128)[0])
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        assert has_kernel(operands)
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((2, 1, 1, 1), MESH_AXES)):
        assert not has_kernel(operands)


def test_the_route_is_measured_and_its_sums_compared(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(module, "_TIMED_SHAPE", (16, 32))
    found = module.unsigned_route.__wrapped__()
    assert found.reason.startswith(("on: unsigned ", "off: unsigned ")) and " ms, signed " in found.reason
    assert [path.suffix for path in (tmp_path / "jaxlm").iterdir()] == [".json"]


def test_a_route_with_other_sums_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(module, "_TIMED_SHAPE", (16, 32))
    monkeypatch.setattr(module, "_by_unsigned", lambda x, codes: module._signed(x, codes) + 1)
    found = module.unsigned_route.__wrapped__()
    assert not found.is_used and "differ" in found.reason


def test_one_cpu_multiplies_many_rows_by_the_native_product(monkeypatch):
    monkeypatch.setattr(module, "native_route", lambda: Route(True, ""))
    operands, _ = _scaled((2, 64, 33), 9)

    def has_kernel(operands):
        return "ffi_call" in str(jax.make_jaxpr(lambda *x: scaled_product(*x, jnp.float32))(*operands))

    assert has_kernel(operands) and not has_kernel(_scaled((2, 63, 33), 9)[0])
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        assert has_kernel(operands)
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((2, 1, 1, 1), MESH_AXES)):
        assert not has_kernel(operands)
    with monkeypatch.context() as other:
        other.setattr(module, "target_platform", lambda: "tpu")
        assert not has_kernel(operands)
    monkeypatch.setattr(module, "native_route", lambda: Route(False, ""))
    assert not has_kernel(operands)


@pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_native_product_is_that_of_xla(monkeypatch, dtype):
    load_library(processor_features())
    operands, expected = _scaled((2, 64, 33), 9)
    for is_used in (True, False):
        monkeypatch.setattr(module, "native_route", lambda is_used=is_used: Route(is_used, ""))
        found = jax.jit(scaled_product, static_argnums=3)(*operands, dtype)
        np.testing.assert_array_equal(found, jnp.asarray(expected).astype(dtype))
