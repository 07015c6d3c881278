"""transformers as an independent witness: it loads our artifacts as they are and computes what we compute."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file
from transformers.integrations import bitnet

from jaxlm.checkpoints.export import export_artifact, stored_tensor_reader
from jaxlm.checkpoints.weights import tree_weights
from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.packing import pack
from jaxlm.common.architecture.parameters import Kind, parameters
from jaxlm.common.architecture.ternary import TernaryForm, quantize_activation
from jaxlm.common.artifact.artifact import write_artifact
from jaxlm.load import load_model
from jaxlm.model.language_model import LanguageModel, init_params
from jaxlm.model.loss import loss_sum
from jaxlm.ops.ternary_linear import (
    Params,
    TernaryWeight,
    quantize_params,
    ternarize,
    ternarize_weight,
    ternary_linear,
    with_ternary,
)
from shared_tokenizer.data.batches import Batch
from shared_tokenizer.tokenizers.tokenizer import Tokenizer
from shared_tokenizer.tokenizers.train import train_tokenizer
from tests.golden.golden_models import (
    DENSE,
    TERNARY,
    golden_token_ids,
    golden_weights,
    parity_error,
)
from tests.witness.transformers_models import load_in_transformers, transformers_logits

DENSE_MODELS = {
    "llama": replace(DENSE, tie_word_embeddings=True, head_dim=8),
    "llama_wide_heads_untied": DENSE,
    "llama_gelu_one_kv_head": replace(DENSE, activation="gelu", num_kv_heads=1),
    "llama_relu2_untied": replace(DENSE, activation="relu2", num_kv_heads=4, tie_word_embeddings=False),
}
TERNARY_MODELS = {
    "bitnet_relu2": TERNARY,
    "bitnet_silu_untied": replace(TERNARY, activation="silu", tie_word_embeddings=False),
    "bitnet_linear_norm": replace(TERNARY, linear_norm=True),
    "ternary_llama": replace(TERNARY, sub_norm=False, activation="silu"),
    "ternary_llama_linear_norm": replace(TERNARY, sub_norm=False, linear_norm=True, head_dim=32),
}
GRADIENT_BOUND = 3e-2
"""Largest relative difference of a tensor's gradient. A few rounding flips were seen to make 7e-3 of it, and
weights quantized with a scale 0.3 % off to make 0.1; without a flip it is 1e-6."""


def make_params(config: ModelConfig, seed: int = 0) -> Params:
    """The latent parameter tree of a golden model."""
    weights = golden_weights(config, seed)
    layers = defaultdict(list)
    for parameter in parameters(config):
        layers[parameter.path].append(jnp.asarray(weights[parameter.name]))
    stacked = {path: jnp.stack(found) if path[0] == "layers" else found[0] for path, found in layers.items()}
    return unflatten_dict(stacked)


@cache
def compiled(config: ModelConfig) -> Callable[..., jax.Array]:
    """Our model, compiled once for all tests."""
    return jax.jit(LanguageModel(config).apply)


def our_logits(config: ModelConfig, params: Params, token_ids: np.ndarray) -> np.ndarray:
    return np.asarray(compiled(config)({"params": params}, jnp.asarray(token_ids)))


def assert_parity(config: ModelConfig, params: Params, model: torch.nn.Module) -> None:
    """Our logits from `params` are those of a transformers model, by the parity rule."""
    token_ids = golden_token_ids(config, 4, 16)
    error = parity_error(
        our_logits(config, params, token_ids), transformers_logits(model, token_ids), config.is_ternary
    )
    assert error is None, error


@pytest.mark.parametrize("name", DENSE_MODELS)
def test_dense_models_agree(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str):
    config = DENSE_MODELS[name]
    params = make_params(config)
    export_artifact(tmp_path / "artifact", config, params, "latent")
    assert_parity(config, params, load_in_transformers(tmp_path / "artifact", caplog))


@pytest.mark.parametrize(("kind", "scale_dtype"), [("latent", "float32"), ("packed", "bfloat16")])
@pytest.mark.parametrize("name", TERNARY_MODELS)
def test_ternary_models_agree(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, kind: Kind, scale_dtype: str
):
    config = replace(TERNARY_MODELS[name], scale_dtype=scale_dtype)
    params = make_params(config)
    export_artifact(tmp_path / "artifact", config, params, kind)
    assert_parity(config, params, load_in_transformers(tmp_path / "artifact", caplog))


def test_a_packed_float32_scale_agrees(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    params = make_params(TERNARY)
    export_artifact(tmp_path / "artifact", TERNARY, ternarize(params, TERNARY), "packed")
    assert_parity(TERNARY, params, load_in_transformers(tmp_path / "artifact", caplog))


def test_fresh_weights_agree(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    params = jax.jit(lambda: init_params(TERNARY, jax.random.key(0)))()
    export_artifact(tmp_path / "artifact", TERNARY, params, "latent")
    assert_parity(TERNARY, params, load_in_transformers(tmp_path / "artifact", caplog))


def test_split_bfloat16_artifacts_agree(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    read = stored_tensor_reader(tree_weights(make_params(DENSE)), DENSE, "latent")
    write_artifact(tmp_path, DENSE, "latent", read, float_dtype="bfloat16", max_file_bytes=20_000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    _, params, _ = load_model(tmp_path, verify=False)
    assert_parity(DENSE, params, load_in_transformers(tmp_path, caplog))


def test_a_missing_tensor_would_be_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    export_artifact(tmp_path / "artifact", TERNARY, make_params(TERNARY), "latent")
    file = tmp_path / "artifact" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.mlp.norm.weight"] = tensors.pop("model.layers.0.mlp.ffn_sub_norm.weight")
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(AssertionError, match="ffn_sub_norm"):
        load_in_transformers(tmp_path / "artifact", caplog)


def test_latent_weights_with_bfloat16_scales_differ_by_the_rounding_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """transformers rounds no scale of latent weights, so its threshold differs by up to 2^-8 of itself.

    Some 5 weights in 10,000 then get another code, which adds up to a tenth of the logits' size: hand over
    the packed form. That nothing else differs shows in parity with our own model under an unrounded scale.
    """
    config = replace(TERNARY, scale_dtype="bfloat16")
    params = make_params(config)
    export_artifact(tmp_path / "artifact", config, params, "latent")
    model = load_in_transformers(tmp_path / "artifact", caplog)
    assert_parity(TERNARY, params, model)

    rounded, unrounded = quantize_params(params, config), quantize_params(params, TERNARY)
    other_codes = np.mean([np.mean(rounded[path].codes != unrounded[path].codes) for path in rounded])
    token_ids = golden_token_ids(config, 4, 16)
    theirs = transformers_logits(model, token_ids)
    difference = np.std(our_logits(config, params, token_ids) - theirs) / np.std(theirs)
    print(f"{other_codes:.2e} of the codes differ, logits by {difference:.3f} of their standard deviation")
    assert 0 < other_codes < 2e-3
    assert difference < 0.25


def random_array(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_activations_are_quantized_to_the_same_integers():
    x = random_array(0, 6, 5, 96) ** 3  # a long tail, as activations have
    x[0, 0] = 0.0
    x[0, 1] = 127 / 64 * np.linspace(-0.5, 0.5, 96)  # many products that end in one half
    quantized, scale = quantize_activation(jnp.asarray(x), jnp)
    their_integers, their_scale = bitnet.BitLinear(96, 4, False).activation_quant(torch.from_numpy(x))
    np.testing.assert_array_equal(quantized, their_integers.numpy())
    # torch computes 127 / x as 127 * (1 / x), whose last bit may differ: one source of flips.
    np.testing.assert_allclose(scale, their_scale.numpy(), rtol=2**-23)
    dequantized = bitnet.ActQuant.apply(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(quantized / scale, dequantized, rtol=2**-22)


def test_weights_are_quantized_and_packed_to_the_same_codes():
    latent = random_array(0, 48, 96)
    weight = ternarize_weight(jnp.asarray(latent), TernaryForm(scale_dtype="float32"))
    theirs = bitnet.WeightQuant.apply(torch.from_numpy(latent))
    np.testing.assert_array_equal(weight.codes, theirs.sign().numpy())
    np.testing.assert_allclose(weight.scale, theirs.abs().max().numpy(), rtol=1e-6)
    np.testing.assert_array_equal(pack(np.asarray(weight.codes)), bitnet.pack_weights(theirs.sign()).numpy())


def test_a_ternary_linear_alone_agrees_forward_and_backward():
    latent, x, dy = random_array(0, 48, 96), random_array(1, 6, 5, 96) ** 3, random_array(2, 6, 5, 48)
    layer = bitnet.AutoBitLinear(96, 48, bias=False, online_quant=True)
    layer.weight.data.copy_(torch.from_numpy(latent))
    their_x = torch.from_numpy(x).requires_grad_()
    their_y = layer(their_x)
    their_y.backward(torch.from_numpy(dy))
    theirs = [tensor.detach().numpy() for tensor in (their_y, their_x.grad, layer.weight.grad)]

    def linear(x: jax.Array, latent: jax.Array) -> jax.Array:
        return ternary_linear(x, ternarize_weight(latent, TernaryForm(scale_dtype="float32")).replace(latent=latent))

    y, backward = jax.vjp(linear, jnp.asarray(x), jnp.asarray(latent))
    for ours, expected in zip((y, *backward(jnp.asarray(dy))), theirs, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_every_ternary_linear_of_a_packed_model_agrees_on_its_own_input(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """Without what flips upstream add up to, there is no tolerance but that of float addition."""
    config = replace(TERNARY, scale_dtype="bfloat16")
    params = ternarize(make_params(config), config)
    export_artifact(tmp_path / "artifact", config, params, "packed")
    model = load_in_transformers(tmp_path / "artifact", caplog)
    calls = record_linears(model, golden_token_ids(config, 4, 16))
    table = [parameter for parameter in parameters(config) if parameter.storage == "ternary"]
    assert {f"{name}.weight" for name in calls} == {parameter.name for parameter in table}
    for parameter in table:
        stack = flatten_dict(params)[parameter.path]
        weight = TernaryWeight(stack.codes[parameter.layer], stack.scale[parameter.layer], 8)
        x, theirs = calls[parameter.name.removesuffix(".weight")]
        ours = ternary_linear(jnp.asarray(x), weight)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6 * np.abs(theirs).max(), err_msg=parameter.name)


def record_linears(model: torch.nn.Module, token_ids: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Input and output of every ternary linear during one forward pass, by module name."""
    calls = {}
    for name, module in model.named_modules():
        if isinstance(module, bitnet.AutoBitLinear):
            module.register_forward_hook(
                lambda _, inputs, output, name=name: calls.update({name: (inputs[0].numpy(), output.numpy())})
            )
    transformers_logits(model, token_ids)
    return calls


@pytest.mark.parametrize("name", ["bitnet_relu2", "ternary_llama_linear_norm", "llama_wide_heads_untied"])
def test_gradients_agree(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str):
    config = (DENSE_MODELS | TERNARY_MODELS)[name]
    params = make_params(config)
    export_artifact(tmp_path / "artifact", config, params, "latent")
    tokens = golden_token_ids(config, 4, 17)
    their_loss, theirs = transformers_gradients(load_in_transformers(tmp_path / "artifact", caplog), tokens)
    our_loss, ours = our_gradients(config, params, tokens)
    np.testing.assert_allclose(our_loss, their_loss, rtol=1e-4)
    worst = worst_gradient(config, ours, theirs)
    print(f"gradients differ by at most {worst:.1e} of their norm")
    assert worst <= GRADIENT_BOUND


def test_gradients_of_slightly_other_codes_would_be_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    params = make_params(TERNARY)
    export_artifact(tmp_path / "artifact", TERNARY, params, "latent")
    tokens = golden_token_ids(TERNARY, 4, 17)
    _, theirs = transformers_gradients(load_in_transformers(tmp_path / "artifact", caplog), tokens)
    _, ours = our_gradients(replace(TERNARY, scale_dtype="bfloat16"), params, tokens)
    assert worst_gradient(TERNARY, ours, theirs) > GRADIENT_BOUND


def transformers_gradients(model: torch.nn.Module, tokens: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
    """Mean cross-entropy of the next token, and its gradient by tensor name."""
    ids = torch.from_numpy(tokens).long()
    logits = model.train()(ids[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    return loss.item(), {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}


def our_gradients(config: ModelConfig, params: Params, tokens: np.ndarray) -> tuple[float, Params]:
    """The same from our training step's loss."""
    inputs, targets = jnp.asarray(tokens[:, :-1]), jnp.asarray(tokens[:, 1:])
    batch: Batch = {
        "inputs": inputs,
        "targets": targets,
        "positions": jnp.broadcast_to(jnp.arange(inputs.shape[1]), inputs.shape),
        "segment_ids": jnp.ones_like(inputs),
        "loss_mask": jnp.ones(inputs.shape, bool),
    }

    def mean_loss(params: Params) -> jax.Array:
        joined = with_ternary(params, quantize_params(params, config))
        total, count = loss_sum(LanguageModel(config), joined, batch)
        return total / count

    loss, gradients = jax.jit(jax.value_and_grad(mean_loss))(params)
    return float(loss), gradients


def worst_gradient(config: ModelConfig, ours: Params, theirs: dict[str, np.ndarray]) -> float:
    """The largest difference of a tensor's gradient, as a share of the gradient's norm."""
    flat, table = flatten_dict(ours), parameters(config)
    assert {parameter.name for parameter in table} == set(theirs)
    worst = 0.0
    for parameter in table:
        leaf = flat[parameter.path]
        expected = theirs[parameter.name]
        found = np.asarray(leaf if parameter.layer is None else leaf[parameter.layer])
        assert np.linalg.norm(expected) > 0, parameter.name
        worst = max(worst, float(np.linalg.norm(found - expected) / np.linalg.norm(expected)))
    return worst


TEXTS = (
    "def add(first):\n    return 12345",
    "  two leading spaces",
    " one leading space",
    "a  b   c",
    "\n\n\tx = '\u00e9'  # \u4f60\u597d \U0001f600 \U0001f40d \u00f1and\u00fa",
    "e\u0301 \ufb01 \u00bd",  # normalisation would change these
    "x=1;\r\n\x00 \uffff",
    "the sign a\u2581b that sentencepiece writes for a space",
    " ",
    "",
)


@pytest.fixture(scope="module")
def tokenizers(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Tokenizer, transformers.PreTrainedTokenizerBase]:
    """Our tokenizer, and what transformers makes of the artifact that carries it."""
    corpus = "".join(TEXTS) + "class Point:\n    x_axis = 1.5 * y_axis  # the quick brown fox jumps\n"
    ours = train_tokenizer([corpus * 20], 380)
    directory = tmp_path_factory.mktemp("tokenizer")
    ours.save(directory)
    config = replace(TERNARY, vocab_size=380, bos_id=ours.bos_id, eos_id=ours.eos_id, pad_id=ours.pad_id)
    params = make_params(config)
    export_artifact(directory / "artifact", config, params, "packed", tokenizer_dir=directory)
    return ours, transformers.AutoTokenizer.from_pretrained(directory / "artifact")


@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_text_agree(tokenizers, text: str):
    ours, theirs = tokenizers
    ids = theirs(text)["input_ids"]
    assert ids == ours.encode_prompt(text)
    assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids) == text


def test_special_tokens_agree(tokenizers):
    ours, theirs = tokenizers
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (
        ours.bos_id,
        ours.eos_id,
        ours.pad_id,
    )
    assert len(theirs) == ours.vocab_size


@pytest.mark.parametrize("text", ["<s>", "</s> <pad>", "<|im_start|>user\nhello<|im_end|>"])
def test_special_tokens_written_in_the_text_are_text_when_transformers_is_told_so(tokenizers, text: str):
    """By default transformers parses them, which has no setting in the files; we never do."""
    ours, theirs = tokenizers
    assert theirs(text, split_special_tokens=True)["input_ids"] == ours.encode_prompt(text)
    assert theirs(text)["input_ids"] != ours.encode_prompt(text)
