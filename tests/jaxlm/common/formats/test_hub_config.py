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
    assert (config.linear, config.sub_norm, config.qk_norm, config.attention_bias) == ("dense", False, False, False)
    config = read_hub_config(BITNET | {"quantization_config": PACKED}, []).model
    assert (config.rope_theta, config.norm_eps, config.activation) == (500000.0, 1e-5, "relu2")
    assert (config.bos_id, config.eos_id, config.tie_word_embeddings) == (None, None, False)
    assert (config.linear, config.sub_norm, config.scale_dtype) == ("ternary", True, "float32")
    large_sizes = {"vocab_size": 128256, "hidden_size": 40, "num_attention_heads": 10}
    large = read_hub_config(SIZES | large_sizes | {"model_type": "bitnet"}, []).model
    assert (large.bos_id, large.eos_id, large.num_kv_heads) == (128000, 128001, 5)
    assert read_hub_config(BITNET | {"num_key_value_heads": None}, []).model.num_kv_heads == 4


def test_the_classes_of_qwen_and_mistral_have_defaults_of_their_own():
    heads = {"num_attention_heads": 32, "hidden_size": 4096}
    qwen2, qwen3 = (read_hub_config(SIZES | heads | {"model_type": name}, []).model for name in ("qwen2", "qwen3"))
    assert (qwen2.attention_bias, qwen2.qk_norm, qwen3.attention_bias, qwen3.qk_norm) == (True, False, False, True)
    assert (qwen2.head_dim, qwen3.head_dim, qwen2.num_kv_heads, qwen3.num_kv_heads) == (128, 128, 32, 32)
    assert {config.max_seq_len for config in (qwen2, qwen3)} == {32768}
    assert {config.bos_id for config in (qwen2, qwen3)} == {config.eos_id for config in (qwen2, qwen3)} == {None}
    narrow = read_hub_config(SIZES | {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": None}, []).model
    assert (narrow.head_dim, narrow.norm_eps, narrow.rope_theta) == (128, 1e-6, 10000.0)
    mistral = read_hub_config(SIZES | heads | {"model_type": "mistral", "sliding_window": None}, []).model
    assert (mistral.num_kv_heads, mistral.max_seq_len, mistral.head_dim) == (8, 131072, 128)
    assert (mistral.qk_norm, mistral.attention_bias, mistral.bos_id, mistral.eos_id) == (False, False, 1, 2)


@pytest.mark.parametrize(
    ("model_type", "keys", "is_read"),
    [
        ("mistral", {}, False),  # 4096 by default
        ("mistral", {"sliding_window": None}, True),
        ("mistral", {"sliding_window": 4096, "max_position_embeddings": 4096}, True),
        ("mistral", {"sliding_window": 4096, "max_position_embeddings": 8192}, False),
        ("qwen2", {"sliding_window": 128}, True),
        ("qwen2", {"sliding_window": 128, "use_sliding_window": True, "max_window_layers": 2}, True),
        ("qwen3", {"sliding_window": 128, "use_sliding_window": True, "max_window_layers": 1}, False),
        ("qwen3", {"sliding_window": 128, "layer_types": ["full_attention", "sliding_attention"]}, False),
        ("qwen3", {"sliding_window": 128, "layer_types": ["full_attention", "full_attention"]}, True),
    ],
)
def test_a_window_is_read_where_it_hides_nothing(model_type, keys, is_read):
    content = SIZES | {"model_type": model_type, "num_key_value_heads": 2} | keys
    if is_read:
        read_hub_config(content, [])
        return
    with pytest.raises(ValueError, match=r"sliding_window: found .* set max_position_embeddings"):
        read_hub_config(content, [])


def test_a_released_qwen_is_read():
    content = {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151643,
        "hidden_act": "silu",
        "hidden_size": 896,
        "initializer_range": 0.02,
        "intermediate_size": 4864,
        "max_position_embeddings": 32768,
        "max_window_layers": 24,
        "model_type": "qwen2",
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.40.1",
        "use_cache": True,
        "use_mrope": False,
        "use_sliding_window": False,
        "vocab_size": 151936,
    }
    assert read_hub_config(content, []).model == preset("qwen2.5-0.5b")


def test_a_released_llama_3_is_read():
    content = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "initializer_range": 0.02,
        "intermediate_size": 8192,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 32,
        "num_hidden_layers": 16,
        "num_key_value_heads": 8,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.45.0.dev0",
        "use_cache": True,
        "vocab_size": 128256,
    }
    assert read_hub_config(content, []).model == preset("llama-3.2-1b")


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


@pytest.mark.parametrize("is_tied", [True, False])
def test_a_head_that_is_not_listed_as_floats_is_ternary_where_it_has_a_scale(is_tied):
    quantization = PACKED | {"modules_to_not_convert": ["model.embed_tokens"]}
    content = LLAMA | {"quantization_config": quantization, "tie_word_embeddings": is_tied}
    assert read_hub_config(content, ["lm_head.weight_scale"]).model.ternary_head == (not is_tied)
    assert not read_hub_config(content, ["lm_head.weight"]).model.ternary_head


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
        ({"model_type": "phi3"}, "model_type: found 'phi3', expected 'llama' or 'mistral' or 'qwen2' or 'qwen3' or"),
        ({"model_type": ["llama"]}, "model_type: found ['llama']"),
        ({"vocab_size": None}, "vocab_size: found None, expected an integer"),
        ({"hidden_size": "32"}, "hidden_size: found '32', expected an integer"),
        ({"rms_norm_eps": "small"}, "norm_eps: found 'small', expected float"),
        ({"attention_bias": True}, "attention_bias: found True, expected False"),
        ({"mlp_bias": True}, "mlp_bias: found True, expected False"),
        ({"pretraining_tp": 2}, "pretraining_tp: found 2, expected 1"),
        ({"sliding_window": 1024}, "sliding_window: found 1024, expected null, since our attention sees the whole"),
        ({"layer_types": 5}, "layer_types: found 5, expected a list"),
        ({"sliding_window": "all"}, "sliding_window: found 'all', expected null"),
        ({"max_position_embeddings": "2048"}, "max_position_embeddings: found '2048', expected an integer"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: found 0.5, expected 1.0"),
        ({"weight_bits": 2}, "weight_bits: found 2, expected 1"),
        ({"hidden_act": "gelu_new"}, "hidden_act: found 'gelu_new', expected 'silu' or 'swish' or 'gelu' or 'relu2'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type: found 'dynamic', expected default, linear"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rope_parameters: missing factor"),
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
