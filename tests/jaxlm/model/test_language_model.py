import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlm.ops.attention
from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.parameters import parameters
from jaxlm.model.language_model import LanguageModel, init_cache, init_params
from jaxlm.model.layers import rotary
from jaxlm.model.mixers import Context
from jaxlm.ops.ternary_linear import TERNARY_RESIDUALS, quantize_params, ternarize, with_ternary
from tests.conftest import LLAMA3, VARIANTS, YARN


@pytest.fixture(params=VARIANTS)
def config(request, tiny_config) -> ModelConfig:
    return dataclasses.replace(tiny_config, **VARIANTS[request.param])


@pytest.fixture
def params(config):
    return initial_params(config)


@functools.cache
def initial_params(config):
    return jax.jit(init_params, static_argnums=0)(config, jax.random.key(0))


# For tests that do not depend on the embedding or the head. The hybrid's layers of attention are those of "ternary".
by_mixer = pytest.mark.parametrize("config", ["dense", "mlgru", "hybrid"], indirect=True)


@pytest.fixture
def token_ids():
    return np.random.default_rng(0).integers(0, 300, (2, 12))


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, *inputs):
    return model.apply({"params": params}, *inputs)


def assert_logits_close(found, expected, config):
    """Dense models to float32 rounding; ternary ones with rounding flips in mind."""
    difference = np.abs(np.asarray(found) - np.asarray(expected))
    assert difference.max() < (3e-2 if config.is_ternary else 1e-4)
    assert difference.mean() < (1e-3 if config.is_ternary else 1e-5)


def test_the_tree_is_the_names_table(config, params):
    from flax.traverse_util import flatten_dict

    expected = {}
    for parameter in parameters(config):
        layers = () if parameter.layer is None else (config.num_repeats,)
        expected[parameter.path] = (*layers, *parameter.shape)
    assert jax.tree.map(jnp.shape, flatten_dict(params)) == expected


def test_logits_are_float32(config, params, token_ids):
    assert apply(LanguageModel(config), params, token_ids).dtype == jnp.float32


@by_mixer
def test_logits_are_causal_by_gradient(config, params, token_ids):
    model = LanguageModel(config)
    table = params["embed_tokens"]["weight"]

    def logit_sum(offsets):
        """Sum of the logits at position 5, as a function of something added to every token's embedding."""
        bound = model.bind({"params": params})
        x = table[token_ids] + offsets
        positions = jnp.broadcast_to(jnp.arange(12), (2, 12))
        hidden = bound.blocks(x, bound._bounds(), Context(positions, positions == 0))
        return jnp.sum(bound.norm(hidden)[:, 5] ** 3)

    gradient = np.abs(jax.jit(jax.grad(logit_sum))(jnp.zeros((2, 12, config.hidden_size)))).sum(axis=(0, 2))
    assert (gradient[:6] > 0).all()
    assert (gradient[6:] == 0).all()


# Every model with one tile of the cache; several tiles where attention is all or a part of the layers.
@pytest.mark.parametrize(
    ("config", "tile"),
    [*((name, 128) for name in VARIANTS), ("dense", 1), ("dense", 2), ("hybrid", 1), ("hybrid", 2)],
    indirect=["config"],
)
def test_cached_decoding_equals_the_uncached_pass(monkeypatch, config, params, token_ids, tile):
    monkeypatch.setattr(jaxlm.ops.attention, "CACHED_TILE", tile)
    model = LanguageModel(config)
    expected = apply(model, params, token_ids)
    cache = init_cache(config, 2, 16)
    decode = jax.jit(lambda t, p, c, last: model.apply({"params": params}, t, p, c, last, method="decode"))
    first = jnp.broadcast_to(jnp.arange(5), (2, 5))
    logits, cache = decode(token_ids[:, :5], first, cache, jnp.array([4, 4]))
    assert_logits_close(logits, expected[:, 4], config)
    for position in range(5, 12):
        at = jnp.full((2, 1), position)
        logits, cache = decode(token_ids[:, position : position + 1], at, cache, jnp.zeros(2, jnp.int32))
        assert_logits_close(logits, expected[:, position], config)


def test_generation_needs_no_second_cache_and_no_scores_of_a_whole_prompt(tiny_config):
    config = dataclasses.replace(tiny_config, num_layers=8, max_seq_len=4096)
    model = LanguageModel(config)
    params = jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))
    cache = jax.eval_shape(lambda: init_cache(config, 1, 4096))
    size = sum(each.size * each.dtype.itemsize for each in jax.tree.leaves(cache))

    def temporaries(length):
        ids, last = jax.ShapeDtypeStruct((1, length), jnp.int32), jax.ShapeDtypeStruct((1,), jnp.int32)
        decode = jax.jit(
            lambda t, p, c, i, w: model.apply({"params": w}, t, p, c, i, method="decode"), donate_argnums=2
        )
        return decode.lower(ids, ids, cache, last, params).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(1) < size / 2
    # Of 4 heads, 4096 tokens would have scores of 256 MiB.
    assert temporaries(4096) < 64 * 2**20


def test_a_cache_of_another_model_is_refused(tiny_config, config, params, token_ids):
    model = LanguageModel(config)
    others = [dataclasses.replace(tiny_config, **VARIANTS[name]) for name in ("ternary", "mlgru", "hybrid")]
    caches = [init_cache(other, 2, 16) for other in others if other.token_mixer != config.token_mixer]
    caches += [init_cache(config, 3, 16), init_cache(dataclasses.replace(config, num_layers=12), 2, 16)]
    for cache in caches:
        with pytest.raises(ValueError, match=r"cache: found .*, expected .*; make one with init_cache"):
            model.apply({"params": params}, token_ids, token_ids, cache, jnp.zeros(2, jnp.int32), method="decode")


# The layers of "ternary" are those of the hybrid, and dense models have none to quantize.
@pytest.mark.parametrize(
    "config", [name for name in VARIANTS if name != "ternary" and "dense" not in VARIANTS[name].values()], indirect=True
)
def test_latent_and_ternary_parameters_run_the_same(config, params, token_ids):
    model = LanguageModel(config)
    latent = apply(model, params, token_ids)
    ternary = jax.jit(ternarize, static_argnums=1)(params, config)
    np.testing.assert_array_equal(apply(model, ternary, token_ids), latent)

    def loss(params, once):
        if once:
            params = with_ternary(params, quantize_params(params, config))
        return jnp.sum(model.apply({"params": params}, token_ids)[..., :3])

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    found, expected = gradient(params, True), gradient(params, False)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(found))


@by_mixer
def test_unrolled_layers_equal_the_loop(config, params, token_ids):
    looped = apply(LanguageModel(config), params, token_ids)
    unrolled = apply(LanguageModel(config, unroll_layers=True), params, token_ids)
    assert_logits_close(unrolled, looped, config)


@pytest.mark.parametrize("counts_anew", [True, False])
@pytest.mark.parametrize("config", ["dense", "hybrid"], indirect=True)
def test_segments_do_not_see_each_other(config, params, token_ids, counts_anew):
    model = LanguageModel(config)
    segment_ids = np.array([[0] * 6 + [1] * 6] * 2)
    positions = np.array([[*range(6), *range(6)]] * 2) if counts_anew else None
    packed = apply(model, params, token_ids, positions, segment_ids)
    for part in (slice(6), slice(6, 12)):
        assert_logits_close(packed[:, part], apply(model, params, token_ids[:, part]), config)


def test_padding_leaves_no_trace_in_a_recurrent_state(tiny_config, token_ids):
    config = dataclasses.replace(tiny_config, **VARIANTS["mlgru"])
    params = initial_params(config)
    model = LanguageModel(config)
    decode = jax.jit(lambda t, p, c, last: model.apply({"params": params}, t, p, c, last, method="decode"))
    positions = jnp.broadcast_to(jnp.arange(12), (2, 12))
    _, padded = decode(token_ids, positions, init_cache(config, 2, 16), jnp.array([4, 11]))
    for row, length in ((0, 5), (1, 12)):
        ids = token_ids[row : row + 1, :length]
        _, alone = decode(ids, positions[:1, :length], init_cache(config, 1, 16), jnp.array([length - 1]))
        np.testing.assert_allclose(padded.state[:, row], alone.state[:, 0], atol=1e-6)


@pytest.mark.parametrize(("linear_norm", "quantizations"), [(False, 4), (True, 7)])
def test_a_block_quantizes_each_input_once(tiny_config, token_ids, linear_norm, quantizations):
    config = dataclasses.replace(tiny_config, linear="ternary", linear_norm=linear_norm)
    params = jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))
    traced = jax.make_jaxpr(LanguageModel(config).apply)({"params": params}, token_ids)
    # The codes and the scale of what q, k and v read, o, gate and up, down; or of each linear's.
    assert str(traced).count(f"name={TERNARY_RESIDUALS}") == 2 * quantizations


@pytest.mark.parametrize(("remat", "kept"), [("products", ["o", "down"]), ("ternary", ["qkv", "o", "gate_up", "down"])])
def test_what_is_kept_of_the_inputs_of_ternary_layers(tiny_config, token_ids, remat, kept):
    config = dataclasses.replace(tiny_config, linear="ternary")
    widths = dict.fromkeys(("qkv", "o", "gate_up"), config.hidden_size) | {"down": config.intermediate_size}
    model = LanguageModel(config, remat=remat)
    params = jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))

    def logits(params):
        return model.apply({"params": with_ternary(params, quantize_params(params, config))}, token_ids)

    found = jax.tree.leaves(jax.eval_shape(functools.partial(jax.vjp, logits), params)[1])
    found = [x.shape for x in found if x.dtype == jnp.int8 and x.shape[1:3] == token_ids.shape]
    assert sorted(found) == sorted((config.num_layers, *token_ids.shape, widths[name]) for name in kept)


@pytest.mark.parametrize(("remat", "kept"), [("products", 1), ("ternary", 1), ("blocks", 0)])
def test_the_normalizers_of_attention_are_kept(tiny_config, token_ids, remat, kept):
    config = dataclasses.replace(tiny_config, linear="ternary", sub_norm=False)
    params = jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))

    def logits(params):
        weights = with_ternary(params, quantize_params(params, config))
        return LanguageModel(config, remat=remat).apply({"params": weights}, token_ids)

    found = jax.tree.leaves(jax.eval_shape(functools.partial(jax.vjp, logits), params)[1])
    (B, L), K = token_ids.shape, config.num_kv_heads
    shape = (config.num_layers, B, K, config.num_heads // K, L, 1)
    assert [x.shape for x in found].count(shape) == kept


def test_memory_of_a_step_grows_with_the_sequence_and_not_with_its_square(tiny_config):
    """Not even that of masks: they are the same in every layer, so jax would compute all of them before."""
    config = dataclasses.replace(tiny_config, num_layers=2, max_seq_len=4096)
    model = LanguageModel(config, remat="products")
    params = jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))

    def temporaries(length):
        token_ids = jax.ShapeDtypeStruct((1, length), jnp.int32)
        gradient = jax.grad(lambda params, ids: jnp.sum(model.apply({"params": params}, ids)))
        return jax.jit(gradient).lower(params, token_ids).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(4096) < 2.3 * temporaries(2048)


@pytest.mark.parametrize(("scaling", "growth"), [(None, 1), (LLAMA3, 1), (YARN, (0.1 * np.log(4) + 1) ** 2)])
def test_rotary_depends_on_distance_alone(tiny_config, scaling, growth):
    config = dataclasses.replace(tiny_config, rope_scaling=scaling)
    rng = np.random.default_rng(0)
    query, key = (jnp.asarray(rng.standard_normal((1, 1, 1, 8)), jnp.float32) for _ in range(2))

    def score(at, other):
        turned = [rotary(x, jnp.array([[p]]), config) for x, p in ((query, at), (key, other))]
        return float(jnp.sum(turned[0] * turned[1]))

    assert score(7, 3) == pytest.approx(score(104, 100), abs=1e-5)
    assert score(7, 3) != pytest.approx(score(7, 4), abs=1e-3)
    assert score(5, 5) == pytest.approx(growth * float(jnp.sum(query * key)), abs=1e-5)


def test_bfloat16_is_close_to_float32(tiny_config, token_ids):
    params = initial_params(tiny_config)
    exact = apply(LanguageModel(tiny_config), params, token_ids)
    rounded = apply(LanguageModel(tiny_config, dtype=jnp.bfloat16), params, token_ids)
    assert rounded.dtype == jnp.float32
    assert 0 < np.abs(rounded - exact).mean() < 0.1 * np.abs(exact).mean()
