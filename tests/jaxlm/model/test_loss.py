import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlm.model.language_model import LanguageModel, init_params
from jaxlm.model.loss import batch_nats, loss_sum
from jaxlm.ops.cross_entropy import _fewest_chunks
from jaxlm.ops.ternary_linear import quantize_params, with_ternary
from tests.conftest import VARIANTS

HEADS = {"tied": {}, "int8": {"embedding": "int8"}}
B, L = 2, 12


def batch():
    rng = np.random.default_rng(0)
    return {
        "inputs": rng.integers(0, 300, (B, L)),
        "targets": rng.integers(0, 300, (B, L)),
        "positions": np.broadcast_to(np.arange(L), (B, L)),
        "segment_ids": np.zeros((B, L), int),
        "loss_mask": rng.integers(0, 2, (B, L)).astype(bool),
    }


@functools.cache
def initial_params(config):
    return jax.jit(init_params, static_argnums=0)(config, jax.random.key(0))


def reference_nats(model, params, batch, z_loss):
    """Return the nats of each token, from all logits at once."""
    arguments = (batch[name] for name in ("inputs", "positions", "segment_ids"))
    logits = model.apply({"params": params}, *arguments)
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
    return nats + z_loss * jax.nn.logsumexp(logits, axis=-1) ** 2


def reference_loss_sum(model, params, batch, z_loss):
    """Return the summed nats and the number of tokens, from all logits at once."""
    nats = reference_nats(model, params, batch, z_loss)
    return jnp.sum(nats * batch["loss_mask"]), jnp.sum(batch["loss_mask"])


@functools.cache
def value_and_gradient(model, chunks, z_loss=0.0):
    """Return 3 times the mean loss and its gradient, from `reference_loss_sum` where chunks is None."""

    def loss(params):
        params = with_ternary(params, quantize_params(params, model.config))
        if chunks is None:
            total, count = reference_loss_sum(model, params, batch(), z_loss)
        else:
            total, count = loss_sum(model, params, batch(), chunks, z_loss)
        return 3 * total / count  # not 1: the backward pass has to scale

    return jax.jit(jax.value_and_grad(loss))(initial_params(model.config))


def value(model, chunks, z_loss=0.0):
    """Return the same loss, compiled without its gradient."""
    loss = jax.jit(lambda params: loss_sum(model, params, batch(), chunks, z_loss)[0])
    return 3 * loss(initial_params(model.config)) / batch()["loss_mask"].sum()


def assert_equal_but_for_rounding(found, expected, tolerance=1e-5):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * max(1.0, np.abs(theirs).max()))


@pytest.mark.parametrize("head", [*HEADS, "mlgru"])
def test_a_loss_in_chunks_is_that_of_all_logits(tiny_config, head):
    config = dataclasses.replace(tiny_config, **(VARIANTS[head] if head == "mlgru" else HEADS[head]))
    if head == "mlgru":
        assert config.ternary_head and config.linear_norm
    model = LanguageModel(config)
    expected = value_and_gradient(model, None)
    for chunks in (1, 4):
        assert_equal_but_for_rounding(value_and_gradient(model, chunks), expected)
    np.testing.assert_allclose(value(model, 4), expected[0], rtol=1e-6)


@pytest.mark.parametrize(("soft_cap", "z_loss"), [(None, 0.1), (0.5, 0.0), (0.5, 0.1)])
def test_z_loss_and_soft_cap_in_chunks_are_those_of_all_logits(tiny_config, soft_cap, z_loss):
    config = dataclasses.replace(tiny_config, num_layers=1, linear="dense", sub_norm=False, logit_softcap=soft_cap)
    model = LanguageModel(config)
    expected = value_and_gradient(model, None, z_loss)
    assert_equal_but_for_rounding(value_and_gradient(model, 4, z_loss), expected, 1e-6)
    np.testing.assert_allclose(value(model, 4, z_loss), expected[0], rtol=1e-6)
    plain = LanguageModel(dataclasses.replace(config, logit_softcap=None))
    assert abs(value(plain, 4) - expected[0]) > 1e-3


@pytest.mark.parametrize("head", [*HEADS, "mlgru"])
def test_nats_of_each_token_have_the_gradient_of_all_logits(tiny_config, head):
    config = dataclasses.replace(tiny_config, **(VARIANTS[head] if head == "mlgru" else HEADS[head]))
    model = LanguageModel(config)

    def found(nats):
        def loss(params):  # whose gradient by a token depends on the others of its row
            rows = jnp.sum(nats(with_ternary(params, quantize_params(params, config))) * batch()["loss_mask"], axis=1)
            return jnp.sum(jnp.square(rows - 20))

        return jax.jit(jax.value_and_grad(loss))(initial_params(config))

    expected = found(lambda params: reference_nats(model, params, batch(), 0.0))
    assert_equal_but_for_rounding(found(lambda params: batch_nats(model, params, batch(), 4)), expected)


def test_a_batch_without_segments_is_one_segment_a_row(tiny_config):
    params = initial_params(tiny_config)
    whole = {name: rows for name, rows in batch().items() if name != "segment_ids"}
    loss = jax.jit(lambda batch: loss_sum(LanguageModel(tiny_config), params, batch)[0])
    np.testing.assert_allclose(loss(whole), loss(batch()), rtol=1e-6)
    apart = batch() | {"segment_ids": np.arange(L)[None].repeat(B, axis=0)}
    assert abs(loss(apart) - loss(whole)) > 1e-3 * loss(whole)


@pytest.mark.parametrize(
    ("shape", "expected"), [((4, 256, 4096), 1), ((8, 256, 4096), 2), ((4, 4096, 128256), 32), ((513, 17, 300), 1)]
)
def test_logits_of_a_chunk_are_small_or_of_few_tokens(shape, expected):
    assert _fewest_chunks(*shape) == expected


def test_chunks_that_do_not_divide_are_refused(tiny_config):
    model, params = LanguageModel(tiny_config), init_params(tiny_config, jax.random.key(0))
    with pytest.raises(ValueError, match="loss_chunks: found 5, expected a divisor of seq_len 12"):
        loss_sum(model, params, batch(), 5)


# The hybrid repeats one layer of each kind.
@pytest.mark.parametrize(
    ("changes", "unroll_layers"), [({}, True), ({"token_mixer": ("mlgru", "attention"), "num_layers": 4}, False)]
)
def test_what_is_kept_for_the_backward_pass_changes_no_gradient(tiny_config, changes, unroll_layers):
    config = dataclasses.replace(tiny_config, **changes)
    expected = value_and_gradient(LanguageModel(config), 1)
    for remat in ("products", "blocks"):
        found = value_and_gradient(LanguageModel(config, unroll_layers=unroll_layers, remat=remat), 1)
        assert_equal_but_for_rounding(found, expected, 1e-3 if config.is_ternary else 1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_in_half_precision_chunks_change_neither_loss_nor_the_width_of_gradients(tiny_config, tied):
    config = dataclasses.replace(tiny_config, tie_word_embeddings=tied)
    model = LanguageModel(config, jnp.bfloat16)
    (expected, _), (found, gradient) = value_and_gradient(model, None), value_and_gradient(model, 4)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(value(model, 4), expected, rtol=1e-5)
