from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlm.ops.attention
from jaxlm.model.language_model import REMAT_POLICIES
from jaxlm.ops.attention import causal_attention, choose_kernel, reference_attention
from jaxlm.ops.splash_attention import splash_attention
from tests.jaxlm.ops.attention_inputs import inputs


def test_cudnn_takes_a_long_sequence_by_tiles(monkeypatch):
    monkeypatch.setattr(jaxlm.ops.attention, "CUDNN_TILE", 4)
    any_device = jax.nn.dot_product_attention
    asked = []

    def without_cudnn(*arguments, implementation, **options):
        asked.append(implementation)
        return any_device(*arguments, **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", without_cudnn)
    segment_ids = np.cumsum(np.arange(39) % 5 == 4)[None].repeat(2, axis=0)
    found = causal_attention(*inputs(39), segment_ids, "cudnn")
    np.testing.assert_allclose(found, reference_attention(*inputs(39), segment_ids), rtol=1e-5, atol=1e-5)
    assert set(asked) == {"cudnn"}


def device(platform, capability=None):
    fields = {} if capability is None else {"compute_capability": capability}
    return SimpleNamespace(platform=platform, device_kind=f"a {platform}", **fields)


@pytest.mark.parametrize(
    ("dtype", "head_dim", "where", "expected"),
    [
        (jnp.bfloat16, 64, device("gpu", "9.0"), "cudnn"),
        (jnp.float16, 128, device("gpu", "8.0"), "cudnn"),
        (jnp.float32, 64, device("gpu", "9.0"), "xla"),
        (jnp.bfloat16, 100, device("gpu", "9.0"), "xla"),
        (jnp.bfloat16, 160, device("gpu", "9.0"), "xla"),
        (jnp.float16, 64, device("gpu", "7.0"), "xla"),
        (jnp.bfloat16, 64, device("tpu"), "xla"),
        (jnp.float32, 64, device("cpu"), "xla"),
    ],
)
def test_the_kernel_suits_the_device(dtype, head_dim, where, expected):
    assert choose_kernel("auto", dtype, head_dim, where) == expected
    assert choose_kernel("xla", dtype, head_dim, where) == "xla"


def test_a_kernel_that_cannot_run_is_refused():
    with pytest.raises(ValueError, match=r"attention: 'cudnn' needs a 16-bit dtype.* found dtype float32, heads of 64"):
        choose_kernel("cudnn", jnp.float32, 64, device("gpu", "9.0"))
    with pytest.raises(ValueError, match=r"'splash' needs a TPU; .*'a cpu'"):
        choose_kernel("splash", jnp.bfloat16, 64, device("cpu"))


@pytest.mark.parametrize("segmented", [False, True])
def test_splash_equals_the_reference(segmented):
    segment_ids = np.cumsum(np.arange(128) % 50 == 49)[None].repeat(2, axis=0) if segmented else None
    arguments = inputs(128)
    found = splash_attention(*arguments, segment_ids, interpret=True)
    np.testing.assert_allclose(found, reference_attention(*arguments, segment_ids), rtol=1e-5, atol=1e-5)


def test_splash_refuses_a_sequence_that_is_not_made_of_whole_vectors():
    with pytest.raises(ValueError, match="seq_len: found 100, expected a multiple of 128"):
        splash_attention(*inputs(100), None)


def test_outputs_of_the_cudnn_forward_pass_are_saved():
    # Private, but the only place where jax writes the name.
    from jax._src.cudnn.fused_attention_stablehlo import _dot_product_attention_fwd_p_wrapper as forward

    assert REMAT_POLICIES["products"](forward)
    assert not REMAT_POLICIES["ternary"](forward)
