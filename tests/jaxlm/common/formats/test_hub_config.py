"""config.json of directories that transformers, other programs or people wrote."""

import dataclasses

import pytest

from jaxlm.common.architecture.presets import preset
from jaxlm.common.formats.hub_config import read_hub_config

SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
LLAMA = SIZES | {"model_type": "llama"}
BITNET = SIZES | {"model_type": "bitnet", "num_key_value_heads": 2}
PACKED = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"}


def test_a_missing_key_has_the_default_of_transformers():
    config = read_hub_config(LLAMA, []).model
    assert (config.num_kv_heads, config.head_dim, config.activation) == (4, 8, "silu")
    assert (config.rope_theta, config.norm_eps, config.max_seq_len) == (10000.0, 1e-6, 2048)
    assert (config.bos_id, config.eos_id, config.pad_id, config.tie_word_embeddings) == (1, 2, None, False)
    assert (config.linear, config.sub_norm) == ("dense", False)
    config = read_hub_config(BITNET | {"quantization_config": PACKED}, []).model
    assert (config.rope_theta, config.norm_eps, config.activation) == (500000.0, 1e-5, "relu2")
    assert (config.bos_id, config.eos_id, config.tie_word_embeddings) == (None, None, False)
    assert (config.linear, config.sub_norm, config.scale_dtype) == ("ternary", True, "float32")
    large_sizes = {"vocab_size": 128256, "hidden_size": 40, "num_attention_heads": 10}
    large = read_hub_config(SIZES | large_sizes | {"model_type": "bitnet"}, []).model
    assert (large.bos_id, large.eos_id, large.num_kv_heads) == (128000, 128001, 5)
    assert read_hub_config(BITNET | {"num_key_value_heads": None}, []).model.num_kv_heads == 4


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 5e5},
        {"rope_theta": 500000, "rope_scaling": None},
        {"rope_theta": 5e5, "rope_scaling": {"type": "default"}},
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
    ],
)
def test_rope_theta_is_read_in_every_spelling(rope):
    assert read_hub_config(LLAMA | rope, []).model.rope_theta == 5e5


def test_smollm2_is_its_preset():
    content = {
        "_name_or_path": "checkpoints",
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 576,
        "initializer_range": 0.041666666666666664,
        "intermediate_size": 1536,
        "is_llama_config": True,
        "max_position_embeddings": 8192,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "pad_token_id": 2,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_interleaved": False,
        "rope_scaling": None,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.42.3",
        "use_cache": True,
        "vocab_size": 49152,
    }
    expected = dataclasses.replace(preset("smollm2-135m"), bos_id=1, eos_id=2, pad_id=2)
    assert read_hub_config(content, []).model == expected


@pytest.mark.parametrize(
    ("quantization", "kind", "inverted"),
    [
        (PACKED, "packed", False),
        (PACKED | {"quantization_mode": "online"}, "latent", False),
        (PACKED | {"linear_class": "bitlinear"}, "packed", True),
        ({"quant_method": "bitnet", "modules_to_not_convert": ["lm_head"]}, "packed", True),
    ],
)
@pytest.mark.parametrize("content", [LLAMA, BITNET])
def test_variants_of_bitnet_are_told_apart(content, quantization, kind, inverted):
    hub = read_hub_config(content | {"quantization_config": quantization}, [])
    assert (hub.kind, hub.inverted_scales, hub.model.linear) == (kind, inverted, "ternary")
    assert hub.model.sub_norm == (content is BITNET)


def test_norms_in_the_linears_need_the_epsilon_of_the_others():
    quantization = PACKED | {"use_rms_norm": True}
    assert read_hub_config(LLAMA | {"quantization_config": quantization}, []).model.linear_norm
    content = LLAMA | {"quantization_config": quantization, "rms_norm_eps": 1e-5}
    with pytest.raises(ValueError, match="quantization_config rms_norm_eps: found 1e-06, expected 1e-05"):
        read_hub_config(content, [])


def test_a_bitnet_that_says_nothing_of_quantization_is_dense_as_transformers_computes_it():
    hub = read_hub_config(BITNET, ["model.layers.0.self_attn.attn_sub_norm.weight"])
    assert (hub.kind, hub.model.linear, hub.model.sub_norm) == ("latent", "dense", True)


@pytest.mark.parametrize(
    ("bits", "names"),
    [
        ({"weight_bits": 1, "input_bits": 8}, []),
        ({}, ["model.layers.0.self_attn.inner_attn_ln.weight", "model.layers.0.mlp.ffn_layernorm.weight"]),
    ],
)
def test_a_model_of_1bitllm_is_ternary_with_sub_norms(bits, names):
    hub = read_hub_config(LLAMA | bits, names)
    assert (hub.kind, hub.model.linear, hub.model.sub_norm) == ("latent", "ternary", True)
    assert (hub.model.activation, hub.model.scale_dtype) == ("silu", "float32")


def test_the_first_of_several_ends_ends_a_document():
    assert read_hub_config(LLAMA | {"eos_token_id": [7, 8]}, []).model.eos_id == 7
    assert read_hub_config(LLAMA | {"eos_token_id": []}, []).model.eos_id is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mistral"}, "model_type: found 'mistral', expected 'llama' or 'bitnet' or 'hgrn_bit'"),
        ({"model_type": ["llama"]}, "model_type: found ['llama']"),
        ({"vocab_size": None}, "vocab_size: found None, expected an integer"),
        ({"hidden_size": "32"}, "hidden_size: found '32', expected an integer"),
        ({"rms_norm_eps": "small"}, "norm_eps: found 'small', expected float"),
        ({"attention_bias": True}, "attention_bias: found True, expected False"),
        ({"mlp_bias": True}, "mlp_bias: found True, expected False"),
        ({"pretraining_tp": 2}, "pretraining_tp: found 2, expected 1"),
        ({"sliding_window": 4096}, "sliding_window: found 4096, expected None"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: found 0.5, expected 1.0"),
        ({"weight_bits": 2}, "weight_bits: found 2, expected 1"),
        ({"hidden_act": "gelu_new"}, "hidden_act: found 'gelu_new', expected 'silu' or 'swish' or 'gelu' or 'relu2'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type: found 'linear', expected 'default'"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rope_type: found 'llama3', expected 'default'"),
        ({"rope_parameters": {"full_attention": {}}}, "rope_parameters: unknown key 'full_attention'"),
        ({"rope_parameters": [1]}, "rope_parameters: found [1], expected an object"),
        ({"eos_token_id": 300}, "eos_id: found 300, expected 0..299"),
        ({"quantization_config": []}, "quantization_config: found [], expected an object"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quant_method: found 'gptq', expected 'bitnet'"),
        ({"quantization_config": PACKED | {"linear_class": "linear"}}, "linear_class: found 'linear'"),
        ({"quantization_config": PACKED | {"quantization_mode": "half"}}, "quantization_mode: found 'half'"),
        (
            {"quantization_config": PACKED | {"modules_to_not_convert": ["lm_head", "q_proj"]}},
            "modules_to_not_convert: found ['lm_head', 'q_proj'], expected ['lm_head']",
        ),
    ],
)
def test_an_option_that_is_not_computed_here_is_refused(change, message):
    with pytest.raises(ValueError) as error:
        read_hub_config(LLAMA | change, [])
    assert message in str(error.value)
