from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlm.attention
from jaxlm.attention import causal_attention, choose_kernel
from jaxlm.model import REMAT_POLICIES
from jaxlm.splash_attention import splash_attention


def inputs(length):
    rng = np.random.default_rng(0)
    shapes = ((2, length, 4, 8), (2, length, 2, 8), (2, length, 2, 8))
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


def whole(queries, keys, values, segment_ids):
    """The definition: a softmax over the scores of all that is seen."""
    keys, values = (jnp.repeat(x, 2, axis=2) for x in (keys, values))
    scores = jnp.einsum("blnh,bsnh->bnls", queries, keys) / 8**0.5
    length = queries.shape[1]
    seen = jnp.tril(jnp.ones((length, length), bool))[None]
    if segment_ids is not None:
        seen = seen & (segment_ids[:, :, None] == segment_ids[:, None])
    weights = jax.nn.softmax(jnp.where(seen[:, None], scores, -jnp.inf), axis=-1)
    return jnp.einsum("bnls,bsnh->blnh", weights, values)


@pytest.mark.parametrize("segmented", [False, True])
@pytest.mark.parametrize("length", [1, 4, 7, 31])
def test_blocks_give_the_attention_and_gradient_of_the_whole(monkeypatch, length, segmented):
    monkeypatch.setitem(jaxlm.attention.BLOCK, "xla", 4)
    segment_ids = np.cumsum(np.arange(length) % 5 == 4)[None].repeat(2, axis=0) if segmented else None
    arguments = inputs(length)
    weights = jnp.asarray(np.random.default_rng(1).standard_normal(arguments[0].shape), jnp.float32)

    def value_and_gradient(attention):
        def weighted(*arguments):
            return jnp.sum(attention(*arguments, segment_ids) * weights)

        return jax.jit(jax.value_and_grad(weighted, argnums=(0, 1, 2)))(*arguments)

    found, expected = value_and_gradient(causal_attention), value_and_gradient(whole)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), found, expected)


def test_memory_grows_with_the_blocks_and_not_with_the_square():
    def temporaries(length):
        arguments = [jax.ShapeDtypeStruct((1, length, heads, 8), jnp.float32) for heads in (4, 2, 2)]
        gradient = jax.grad(lambda *a: jnp.sum(causal_attention(*a, None)), argnums=(0, 1, 2))
        return jax.jit(gradient).lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    # Of 2048 x 2048 scores in float32 and 4 heads, 64 MiB, some blocks are there at a time.
    assert temporaries(2048) < 4 * 4 * 2048**2 / 3
    assert temporaries(4096) < 2.5 * temporaries(2048)


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
def test_splash_gives_the_attention_of_the_whole(segmented):
    segment_ids = np.cumsum(np.arange(128) % 50 == 49)[None].repeat(2, axis=0) if segmented else None
    arguments = inputs(128)
    found = splash_attention(*arguments, segment_ids, interpret=True)
    np.testing.assert_allclose(found, whole(*arguments, segment_ids), rtol=1e-5, atol=1e-5)


def test_splash_refuses_a_sequence_that_is_not_made_of_whole_vectors():
    with pytest.raises(ValueError, match="seq_len: found 100, expected a multiple of 128"):
        splash_attention(*inputs(100), None)


def test_what_the_forward_pass_of_cudnn_gives_is_kept_for_its_backward_pass():
    # Private, but the only place where jax says the name.
    from jax._src.cudnn.fused_attention_stablehlo import _dot_product_attention_fwd_p_wrapper as forward

    assert REMAT_POLICIES["products"](forward)
    assert not REMAT_POLICIES["ternary"](forward)
