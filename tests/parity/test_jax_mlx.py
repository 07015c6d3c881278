"""JAX and MLX from the same artifact: the same codes, the same integers, the same words."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import mlx.core as mx
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from mlx.utils import tree_flatten

import jaxlm.generate
import jaxlm.load
import mlxlm.generate
import mlxlm.load
from jaxlm.checkpoints.export import export_artifact
from jaxlm.common.architecture.packing import unpack_affine
from jaxlm.common.architecture.parameters import parameters
from jaxlm.common.architecture.ternary import quantize_activation
from jaxlm.common.sampling import Sampling
from jaxlm.model.language_model import init_params
from jaxlm.ops.ternary_linear import TernaryWeight, ternarize, ternary_linear
from mlxlm.model.ternary_linear import integer_product
from tests.conftest import TINY, VARIANTS

# For ternary models: a rounding flip moves logits by about 1e-3 to 1e-2.
NEAR_TIE = 3e-2


@pytest.fixture(scope="module", params=VARIANTS)
def artifacts(request, tmp_path_factory):
    """A config with room for 256 tokens, its latent artifact, and its packed one."""
    path = tmp_path_factory.mktemp(request.param)
    config = dataclasses.replace(TINY, max_seq_len=320, **VARIANTS[request.param])
    params = jax.jit(init_params, static_argnums=0)(config, jax.random.key(1))
    for kind in ("latent", "packed"):
        export_artifact(path / kind, config, params, kind)
    return config, path / "latent", path / "packed"


def ternary_leaves(params):
    leaves = jax.tree.leaves(params, is_leaf=lambda node: isinstance(node, TernaryWeight))
    return [leaf for leaf in leaves if isinstance(leaf, TernaryWeight)]


def test_both_kinds_hold_the_same_codes_in_both_frameworks(artifacts):
    config, latent, packed = artifacts
    trees = [ternarize(jaxlm.load.load_model(path)[1], config) for path in (latent, packed)]
    for leaves in zip(*(ternary_leaves(tree) for tree in trees), strict=True):
        np.testing.assert_array_equal(leaves[0].codes, leaves[1].codes)
        np.testing.assert_array_equal(leaves[0].scale, leaves[1].scale)
    held = [dict(tree_flatten(mlxlm.load.load_model(path)[0].parameters())) for path in (latent, packed)]
    flat = flatten_dict(trees[0])
    for parameter in parameters(config):
        weight = flat[parameter.path]
        if not isinstance(weight, TernaryWeight):
            continue
        place = () if parameter.layer is None else parameter.layer
        for arrays in held:
            if parameter.path[0] != "embed_tokens":
                words = np.array(arrays[parameter.attribute])
                np.testing.assert_array_equal(unpack_affine(words, parameter.shape[1]), weight.codes[place])
                scale = np.array(arrays[parameter.attribute + "_scale"]).reshape(weight.scale[place].shape)
                np.testing.assert_array_equal(scale, weight.scale[place])


def test_a_ternary_layer_is_equal_to_the_bit(tiny_config, tmp_path):
    params = jax.jit(init_params, static_argnums=0)(tiny_config, jax.random.key(1))
    export_artifact(tmp_path / "packed", tiny_config, params, "packed")
    _, params, _ = jaxlm.load.load_model(tmp_path / "packed")
    stacked = params["layers"]["mlp"]["gate_proj"]["weight"]
    weight = TernaryWeight(stacked.codes[0], stacked.scale[0], 8)
    module = mlxlm.load.load_model(tmp_path / "packed")[0].layers[0].mlp.gate_proj
    x = np.random.default_rng(0).standard_normal((3, 7, tiny_config.hidden_size)).astype(np.float32)
    quantized = [np.array(quantize_activation(array(x), xp)[0]) for xp, array in ((jnp, jnp.asarray), (mx, mx.array))]
    np.testing.assert_array_equal(*quantized)
    products = np.einsum("bli,oi->blo", quantized[0].astype(np.int64), np.asarray(weight.codes, np.int64))
    np.testing.assert_array_equal(np.array(integer_product(mx.array(quantized[1]), module.weight)), products)
    np.testing.assert_allclose(np.array(module(mx.array(x))), ternary_linear(x, weight), rtol=3e-7)


# Latent artifacts where loading quantizes an embedding or a head; quantized layers are compared code by code above.
@pytest.mark.parametrize(
    ("artifacts", "kind"),
    [
        *((name, "packed") for name in VARIANTS),
        *((name, "latent") for name in ("ternary_head", "int8_embedding", "ternary_embedding")),
    ],
    indirect=["artifacts"],
)
def test_256_greedy_tokens_are_the_same(artifacts, kind):
    config, latent, packed = artifacts
    path = latent if kind == "latent" else packed
    model, params, _ = jaxlm.load.load_model(path)
    other, _ = mlxlm.load.load_model(path)
    prompt = [1, 17, 250, 3]
    sampling = Sampling(max_tokens=256)
    text = list(jaxlm.generate.generate(model, params, prompt, sampling))
    assert len(text) == 256
    # Both see JAX's text, so that one near tie does not make all that follows differ.
    token_ids = np.array([prompt + text])
    ours = np.asarray(jax.jit(model.apply)({"params": params}, token_ids))[0]
    theirs = np.array(other(mx.array(token_ids)))[0]
    difference = np.abs(ours - theirs)
    if config.is_ternary:
        flipped = int((difference.max(axis=-1) > 1e-4).sum())
        print(f"{flipped} of {len(ours)} positions saw a rounding flip")
        assert flipped < len(ours) // 2  # flips are rare: a tolerance is no place for a bug to hide
        assert difference.max() < NEAR_TIE and difference.mean() < 1e-3
    else:
        assert difference.max() < 1e-4
    best = np.sort(ours, axis=-1)
    clear = best[:, -1] - best[:, -2] > (NEAR_TIE if config.is_ternary else 1e-4)
    np.testing.assert_array_equal(ours.argmax(-1)[clear], theirs.argmax(-1)[clear])
    # And MLX's own cached decoding, up to the first near tie.
    generated = list(mlxlm.generate.generate(other, prompt, sampling))
    first_tie = int(np.argmin(clear[len(prompt) - 1 :])) if not clear[len(prompt) - 1 :].all() else 256
    assert generated[:first_tie] == text[:first_tie]


def test_mlx_cached_decoding_equals_its_uncached_pass(artifacts):
    _, _, packed = artifacts
    model, _ = mlxlm.load.load_model(packed)
    token_ids = mx.array(np.random.default_rng(0).integers(0, 300, (1, 12)))
    expected = np.array(model(token_ids))
    cache = model.make_cache()
    # A prompt in two chunks, then token by token.
    bounds = [0, 5, 8, *range(9, 13)]
    parts = [np.array(model(token_ids[:, a:b], cache=cache)) for a, b in itertools.pairwise(bounds)]
    difference = np.abs(np.concatenate(parts, axis=1) - expected)
    assert difference.max() < NEAR_TIE and np.median(difference) < 1e-5


def test_mlx_sampling_follows_its_seed_and_stops(tiny_config, tmp_path):
    params = jax.jit(init_params, static_argnums=0)(tiny_config, jax.random.key(1))
    export_artifact(tmp_path / "packed", tiny_config, params, "packed")
    model, tokenizer = mlxlm.load.load_model(tmp_path / "packed")
    assert tokenizer is None

    def text(seed):
        sampling = Sampling(max_tokens=12, temperature=1.0, top_k=50, top_p=0.9, min_p=0.01, seed=seed)
        return list(mlxlm.generate.generate(model, [1, 5], sampling))

    assert text(0) == text(0) != text(1)
    greedy = list(mlxlm.generate.generate(model, [1, 5], Sampling(max_tokens=10)))
    assert (
        list(mlxlm.generate.generate(model, [1, 5], Sampling(max_tokens=10), greedy[3]))
        == greedy[: greedy.index(greedy[3])]
    )
    assert len(list(mlxlm.generate.generate(model, [1] * 60, Sampling(max_tokens=100)))) == 4
    with pytest.raises(ValueError, match="found no token"):
        list(mlxlm.generate.generate(model, [], Sampling()))
