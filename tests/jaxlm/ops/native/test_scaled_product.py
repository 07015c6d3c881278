import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.ops.machine.cpu import processor_features
from jaxlm.ops.machine.routes import record_of
from jaxlm.ops.native import scaled_product
from jaxlm.ops.native.build import FLAGS, NoLibraryError, find_compiler
from jaxlm.ops.native.scaled_product import (
    FASTER_FEATURE,
    FEATURE,
    check_exact,
    load_library,
    native_scaled_product,
    scaled_product_route,
)

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")


@pytest.fixture(scope="module")
def library():
    """Make the kernel known to jax: with its instructions where the processor has them, else with the plain steps."""
    return load_library(processor_features())


def by_xla(x, codes, scale):
    return (x.astype(jnp.float32) @ codes.astype(jnp.float32).T) * scale


def operands(T, O, I):  # noqa: E741
    rng = np.random.default_rng(0)
    x, codes = rng.integers(-128, 128, (T, I)).astype(np.int8), rng.integers(-1, 2, (O, I)).astype(np.int8)
    scale = rng.uniform(0.5, 2, T).astype(np.float32)
    return (x, codes, scale), (x.astype(np.int64) @ codes.T).astype(np.float32) * scale[:, None]


@needs_compiler
@pytest.mark.parametrize(("T", "O", "I"), [(1, 1, 1), (7, 16, 4), (37, 19, 23), (200, 33, 259), (97, 64, 1031)])
def test_sums_are_exact(library, T, O, I):  # noqa: E741
    given, right = operands(T, O, I)
    np.testing.assert_array_equal(jax.jit(native_scaled_product)(*given), right)


@needs_compiler
@pytest.mark.parametrize(("value", "code"), [(-128, 1), (127, 1), (-128, -1), (127, -1)])
def test_extremes_do_not_saturate(library, value, code):
    x, codes = np.full((8, 2048), value, np.int8), np.full((24, 2048), code, np.int8)
    found = native_scaled_product(x, codes, np.ones(8, np.float32))
    np.testing.assert_array_equal(found, np.full((8, 24), 2048.0 * value * code))


@needs_compiler
def test_batches_are_multiplied_one_by_one(library):
    (x, codes, scale), right = operands(12, 8, 33)
    found = jax.vmap(native_scaled_product, in_axes=(0, None, 0))(x.reshape(3, 4, 33), codes, scale.reshape(3, 4))
    np.testing.assert_array_equal(found, right.reshape(3, 4, 8))


@needs_compiler
def test_plain_steps_are_exact_on_every_processor():
    if FEATURE not in processor_features():
        pytest.skip("these are the plain steps already")
    call = "from jaxlm.ops.native import scaled_product as m; m.load_library((), {flags}); m.check_exact()"
    words = [sys.executable, "-c", call.format(flags=(*FLAGS, "-mno-avx2"))]
    child = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert child.returncode == 0, child.stderr


def test_processors_without_the_instruction_or_with_a_better_one_keep_to_xla():
    assert scaled_product_route.__wrapped__(("asimddp",), by_xla).reason == f"off: the processor has no {FEATURE}"
    found = scaled_product_route.__wrapped__((FEATURE, FASTER_FEATURE), by_xla)
    assert (found.is_used, found.reason) == (False, f"off: the processor has {FASTER_FEATURE}")


def test_a_library_that_cannot_be_built_is_a_reason(monkeypatch):
    def no_library(*_):
        raise NoLibraryError("no C++ compiler")

    monkeypatch.setattr(scaled_product, "build_library", no_library)
    assert scaled_product_route.__wrapped__((FEATURE,), by_xla).reason == "off: no C++ compiler"


def test_a_product_that_is_wrong_or_slower_is_not_used(tmp_path, monkeypatch):
    library = tmp_path / "scaled_product.so"
    monkeypatch.setattr(scaled_product, "load_library", lambda processor: library)
    monkeypatch.setattr(scaled_product, "check_exact", lambda: None)
    record_of(library).write_text(json.dumps({"native": 0.002, "XLA": 0.001}))
    found = scaled_product_route.__wrapped__((FEATURE,), by_xla)
    assert (found.is_used, found.reason) == (False, f"off: native 2.00 ms, XLA 1.00 ms ({library})")
    record_of(library).write_text(json.dumps({"native": 0.001, "XLA": 0.002}))
    assert scaled_product_route.__wrapped__((FEATURE,), by_xla).is_used
    monkeypatch.setattr(scaled_product, "check_exact", check_exact)
    wrong = lambda x, codes, scale: jnp.zeros((len(x), len(codes)))  # noqa: E731
    monkeypatch.setattr(scaled_product, "native_scaled_product", wrong)
    found = scaled_product_route.__wrapped__((FEATURE,), by_xla)
    assert found.reason == "off: products of int8 and codes are wrong on this processor"


@needs_compiler
def test_both_are_timed_once_on_a_machine(library, tmp_path, monkeypatch):
    monkeypatch.setattr(scaled_product, "_TIMED_SHAPE", (8, 16, 16))
    path = tmp_path / "scaled_product.so"
    monkeypatch.setattr(scaled_product, "load_library", lambda processor: path)
    found = scaled_product_route.__wrapped__((FEATURE,), by_xla)
    assert set(json.loads(record_of(path).read_text())) == {"native", "XLA"}
    assert found.reason.startswith(("on: native ", "off: native "))
    assert scaled_product_route.__wrapped__((FEATURE,), by_xla) == found


@needs_compiler
def test_both_forms_give_the_same(library, monkeypatch):
    monkeypatch.setattr(scaled_product, "_TIMED_SHAPE", (8, 16, 16))
    forms = scaled_product._forms(by_xla)
    np.testing.assert_array_equal(forms["native"](), forms["XLA"]())


@needs_compiler
def test_operands_of_other_sizes_are_refused(library):
    (x, codes, scale), _ = operands(12, 8, 33)
    for given in ((x[:, :32], codes, scale), (x, codes, scale[:1])):
        with pytest.raises(jax.errors.JaxRuntimeError, match="sizes of the operands differ"):
            jax.block_until_ready(native_scaled_product(*given))
