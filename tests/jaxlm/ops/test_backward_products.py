import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlm.ops.backward_products as module
from jaxlm.ops.backward_products import features_gradient, step_options, weight_gradient
from jaxlm.ops.machine.cpu import processor_features
from jaxlm.ops.machine.routes import Route
from jaxlm.ops.native.build import find_compiler
from jaxlm.ops.native.products import flags_for, load_library, operand_dtype
from jaxlm.parallel.mesh import make_mesh
from jaxlm.parallel.mesh_config import MESH_AXES, MeshConfig

SHAPE = (4, 64, 48)  # batch, length, outputs


@pytest.fixture(params=[True, False])
def route(request, monkeypatch):
    """The kernel of our own, and XLA's products."""
    if request.param:
        if find_compiler() is None:
            pytest.skip("no C++ compiler")
        load_library(processor_features(), flags_for(processor_features()))
    monkeypatch.setattr(module, "native_dtype", lambda: operand_dtype(processor_features()) if request.param else None)
    return request.param


def operands(scale_shape):
    rng = np.random.default_rng(0)
    dy, codes = rng.standard_normal(SHAPE), rng.integers(-1, 2, (48, 80))
    x, x_scale = rng.integers(-127, 128, (*SHAPE[:2], 80)), rng.uniform(1, 9, (*SHAPE[:2], 1))
    scale = rng.uniform(0.1, 1, scale_shape)
    return [
        jnp.asarray(array, kind)
        for array, kind in ((dy, "float32"), (codes, "int8"), (scale, "float32"), (x, "int8"), (x_scale, "float32"))
    ]


def is_close(found, right, dtype):
    allowed = 2e-2 if dtype == "bfloat16" else 1e-5
    assert np.abs(np.asarray(found, np.float64) - right).max() <= allowed * right.std()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scale_shape", [(1, 1), (48, 1), (48, 2)])
def test_gradients_of_codes_and_scales(route, dtype, scale_shape):
    dy, codes, scale, x, x_scale = operands(scale_shape)
    matrix = np.asarray(codes, np.float64) * np.repeat(np.asarray(scale), 80 // scale_shape[1], axis=1)
    dx = jax.jit(features_gradient, static_argnums=3)(dy, codes, scale, dtype)
    assert dx.dtype == dy.dtype
    is_close(dx, np.asarray(dy, np.float64) @ matrix, dtype)
    dweight = jax.jit(weight_gradient, static_argnums=3)(dy, x, x_scale, dtype)
    is_close(dweight, np.einsum("blo,bli->oi", dy, np.asarray(x / x_scale, np.float64)), dtype)


def test_gradients_of_floats_in_16_bits(route):
    dy, codes, _, x, _ = operands((1, 1))
    dy, weight, x = dy.astype(jnp.bfloat16), codes.astype(jnp.bfloat16) / 3, x.astype(jnp.bfloat16) / 7
    dx = features_gradient(dy, weight)
    assert dx.dtype == jnp.bfloat16
    exact = [np.asarray(array, np.float64) for array in (dy, weight, x)]
    is_close(dx, exact[0] @ exact[1], "bfloat16")
    dweight = weight_gradient(dy, x)
    assert dweight.dtype == jnp.float32
    is_close(dweight, np.einsum("blo,bli->oi", exact[0], exact[2]), "float32")


def test_the_kernel_is_for_its_precision_on_one_cpu(monkeypatch):
    monkeypatch.setattr(module, "native_dtype", lambda: jnp.dtype(jnp.bfloat16))
    dy, codes, scale, _, _ = operands((1, 1))

    def has_kernel(dy, dtype):
        return "ffi_call" in str(jax.make_jaxpr(lambda dy: features_gradient(dy, codes, scale, dtype))(dy))

    assert has_kernel(dy, "bfloat16") and has_kernel(dy.astype(jnp.bfloat16), None)
    assert not has_kernel(dy, None) and not has_kernel(dy.astype(jnp.float16), None)
    assert not has_kernel(dy[:1, :1], "bfloat16")  # too small
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        assert has_kernel(dy, "bfloat16")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((2, 1, 1, 1), MESH_AXES)):
        assert not has_kernel(dy, "bfloat16")
    with monkeypatch.context() as other:
        other.setattr(module, "target_platform", lambda: "gpu")
        assert not has_kernel(dy, "bfloat16")
    monkeypatch.setattr(module, "native_dtype", lambda: jnp.dtype(jnp.float32))
    assert has_kernel(dy, None) and has_kernel(dy.astype(jnp.bfloat16), "float32")
    assert not has_kernel(dy, "bfloat16") and not has_kernel(dy.astype(jnp.float16), None)
    monkeypatch.setattr(module, "native_dtype", lambda: None)
    assert not has_kernel(dy, "bfloat16") and not has_kernel(dy, None)


@pytest.mark.parametrize("features", [("avx2",), ("avx2", "avx512f", "avx512_bf16")])
def test_the_precision_of_the_kernel_is_that_of_the_processor(monkeypatch, features):
    monkeypatch.setattr(module, "processor_features", lambda: features)
    monkeypatch.setattr(module, "native_products", lambda processor: Route(processor == features, ""))
    assert module.native_dtype() == operand_dtype(features)
    monkeypatch.setattr(module, "native_products", lambda processor: Route(False, ""))
    assert module.native_dtype() is None


@pytest.mark.parametrize(
    ("dtype", "backward_dtype", "hidden_size", "has_onednn"),
    [
        ("float32", "bfloat16", 256, False),
        ("float32", "bfloat16", 512, True),
        ("float32", None, 256, True),  # the gradients' products are not the kernel's
        ("bfloat16", None, 2048, False),
    ],
)
def test_onednn_multiplies_where_it_pays(monkeypatch, dtype, backward_dtype, hidden_size, has_onednn):
    monkeypatch.setattr(module, "native_dtype", lambda: jnp.dtype(jnp.bfloat16))
    monkeypatch.setattr(module, "onednn_options", lambda platform: {"onednn": platform})
    found = step_options("cpu", jnp.dtype(dtype), backward_dtype, hidden_size)
    assert found == ({"onednn": "cpu"} if has_onednn else {})
    assert step_options("gpu", jnp.dtype(dtype), backward_dtype, hidden_size) == {}
    for other in (None, jnp.dtype(jnp.float32)):
        monkeypatch.setattr(module, "native_dtype", lambda other=other: other)
        assert step_options("cpu", jnp.dtype(dtype), backward_dtype, hidden_size) == {"onednn": "cpu"}
