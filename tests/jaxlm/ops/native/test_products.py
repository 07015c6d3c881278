import json
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.ops.machine.cpu import processor_features
from jaxlm.ops.machine.routes import measured_once, record_of
from jaxlm.ops.native import products
from jaxlm.ops.native.build import FLAGS, NoLibraryError, find_compiler
from jaxlm.ops.native.products import (
    BFLOAT16_FEATURE,
    FEATURE,
    check_exact,
    d_features,
    d_weight,
    flags_for,
    load_library,
    native_products,
    operand_dtype,
)

PROCESSOR = processor_features()

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")


@pytest.fixture(scope="module")
def library():
    """Make the kernel known to jax: with its instructions where the processor has them, else with the plain steps."""
    return load_library(PROCESSOR, flags_for(PROCESSOR))


@needs_compiler
def test_products_of_integers_are_exact(library):
    check_exact()


@needs_compiler
@pytest.mark.parametrize("flags", ["-DEMULATED_TILES", "", "-DFLOAT_WORDS", "-DFLOAT_WORDS -mno-avx512f"])
def test_the_steps_of_every_processor_are_exact(flags):
    """Tiles as with AMX, pairs of bfloat16, and float32 in the widest vectors and in those of AVX2."""
    if flags.endswith("-mno-avx512f") and "avx512f" not in PROCESSOR:
        pytest.skip("these are its widest vectors, or it has none")
    if flags == "-DFLOAT_WORDS" and flags in flags_for(PROCESSOR):
        pytest.skip("tested above")
    call = "from jaxlm.ops.native import products; products.load_library((), {flags}); products.check_exact()"
    words = [sys.executable, "-c", call.format(flags=(*FLAGS, "-O1", *flags.split()))]
    child = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert child.returncode == 0, child.stderr


@needs_compiler
@pytest.mark.parametrize(("T", "O", "I"), [(1, 1, 1), (37, 19, 23), (600, 200, 65), (515, 33, 112)])
@pytest.mark.parametrize("kind", [jnp.int8, jnp.bfloat16, jnp.float32])
def test_products_are_those_of_rounded_operands(library, T, O, I, kind):  # noqa: E741
    rng = np.random.default_rng(0)
    dy = jnp.asarray(rng.standard_normal((T, O)), jnp.float32)
    factors = jnp.asarray(rng.uniform(0.5, 2, T), jnp.float32)
    x, weight = (jnp.asarray(rng.uniform(-100, 100, shape), kind) for shape in ((T, I), (O, I)))

    def rounded(array):
        return np.asarray(array.astype(operand_dtype(PROCESSOR)), np.float64)

    right = rounded(dy * factors[:, None]).T @ rounded(x)
    np.testing.assert_allclose(jax.jit(d_weight)(dy, factors, x), right, rtol=1e-4, atol=1e-3 * np.abs(right).max())
    right = 0.25 * rounded(dy) @ rounded(weight)
    found = jax.jit(d_features)(dy, weight, jnp.float32(0.25))
    np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-3 * np.abs(right).max())


@needs_compiler
def test_no_tokens_have_a_gradient_of_zero(library):
    assert not d_weight(jnp.ones((0, 24)), jnp.ones(0), jnp.ones((0, 40))).any()


@needs_compiler
def test_operands_of_other_sizes_are_refused(library):
    with pytest.raises(jax.errors.JaxRuntimeError, match="sizes of the operands differ"):
        jax.block_until_ready(d_weight(jnp.ones((4, 8)), jnp.ones(4), jnp.ones((5, 8))))
    with pytest.raises(jax.errors.JaxRuntimeError, match="sizes of the operands differ"):
        jax.block_until_ready(d_features(jnp.ones((4, 8)), jnp.ones((9, 8)), jnp.float32(1)))


@needs_compiler
def test_what_is_not_a_number_stays_so(library):
    dy = jnp.full((4, 16), jnp.nan)
    assert np.isnan(d_features(dy, jnp.ones((16, 16), jnp.int8), jnp.float32(1))).all()
    assert np.isnan(d_weight(dy, jnp.ones(4), jnp.ones((4, 16)))).all()


@needs_compiler
def test_batches_are_multiplied_one_by_one(library):
    dy, weight = jnp.ones((3, 4, 16)), jnp.arange(16.0 * 8).reshape(16, 8)
    found = jax.vmap(lambda dy: d_features(dy, weight, jnp.float32(1)))(dy)
    np.testing.assert_array_equal(found, np.broadcast_to(np.asarray(weight).sum(axis=0), (3, 4, 8)))


def test_operands_are_in_bfloat16_where_the_processor_multiplies_it():
    assert operand_dtype(("avx2", "avx512f", BFLOAT16_FEATURE)) == jnp.bfloat16
    assert flags_for((BFLOAT16_FEATURE,)) == FLAGS
    assert operand_dtype(("avx2", "avx512f")) == jnp.float32 and "-DFLOAT_WORDS" in flags_for(("avx2",))


def test_a_processor_without_the_instruction_keeps_to_xla():
    found = native_products.__wrapped__(("asimddp",))
    assert (found.is_used, found.reason) == (False, f"off: the processor has no {FEATURE}")


def test_a_library_that_cannot_be_built_or_loaded_is_a_reason(tmp_path, monkeypatch):
    def no_library(*_):
        raise NoLibraryError("no C++ compiler")

    monkeypatch.setattr(products, "build_library", no_library)
    assert native_products.__wrapped__((FEATURE,)).reason == "off: no C++ compiler"
    damaged = tmp_path / "products.so"
    damaged.write_text("not a library")
    monkeypatch.setattr(products, "build_library", lambda *_: damaged)
    found = native_products.__wrapped__((FEATURE,))
    assert not found.is_used and found.reason.startswith(f"off: {damaged}: ")


def test_a_kernel_that_is_wrong_or_slower_is_not_used(tmp_path, monkeypatch):
    library = tmp_path / "products.so"
    monkeypatch.setattr(products, "load_library", lambda processor, flags: library)
    monkeypatch.setattr(products, "check_exact", lambda: None)
    record_of(library).write_text(json.dumps({"native": 0.002, "XLA": 0.001}))
    found = native_products.__wrapped__((FEATURE, BFLOAT16_FEATURE))
    assert (found.is_used, found.reason) == (False, f"off: native 2.00 ms, XLA 1.00 ms ({library})")
    record_of(library).write_text(json.dumps({"native": 0.00105, "XLA": 0.001}))
    monkeypatch.setattr(products, "onednn_options", lambda platform: {})
    assert native_products.__wrapped__((FEATURE,)).is_used  # gains more in a step
    assert not native_products.__wrapped__((FEATURE, BFLOAT16_FEATURE)).is_used
    monkeypatch.setattr(products, "onednn_options", lambda platform: {"xla_cpu_use_onednn": True})
    assert not native_products.__wrapped__((FEATURE,)).is_used
    monkeypatch.undo()
    monkeypatch.setattr(products, "load_library", lambda processor, flags: library)
    monkeypatch.setattr(products, "d_weight", lambda dy, factors, x: jnp.zeros((dy.shape[1], x.shape[1])))
    monkeypatch.setattr(products, "d_features", lambda dy, weight, factor: dy.astype(jnp.float32) @ weight * factor)
    found = native_products.__wrapped__((FEATURE,))
    assert found.reason == "off: products of float32 and int8 are wrong on this processor"


@needs_compiler
def test_both_are_timed_once_on_a_machine(library, tmp_path, monkeypatch):
    monkeypatch.setattr(products, "_TIMED_SHAPES", ((8, 16, 16), (4, 8, 24)))
    path = tmp_path / "products.so"
    record_of(path).write_text("{")  # damaged
    forms = partial(products._forms, jnp.dtype(jnp.float32))
    measured = measured_once(path, forms)
    assert set(measured) == {"native", "XLA"} and min(measured.values()) > 0
    assert measured_once(path, forms) == measured
