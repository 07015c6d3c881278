"""config.json of a transformers directory of another program -> ModelConfig.

A missing key has the default of the config class in transformers. A key that the class does not have changes nothing
that the model computes, and is ignored.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from jaxlm.common.architecture import mmfreelm
from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.hf_config import HF_KEYS
from jaxlm.common.architecture.hf_rope import from_hf_rope
from jaxlm.common.architecture.parameters import Kind

_REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_DEFAULTS = {
    "head_dim": None,
    "max_position_embeddings": 2048,
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "pad_token_id": None,
}
_QWEN: dict[str, Any] = {
    "num_key_value_heads": 32,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
}
# By model type: the defaults in which the config classes differ.
_CLASS_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {
        "num_key_value_heads": None,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "mistral": {
        "num_key_value_heads": 8,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "qwen2": _QWEN,
    "qwen3": _QWEN | {"head_dim": 128},
    # Not a class of transformers: the defaults are those of the program that comes with its models.
    "minicpm": {
        "num_key_value_heads": None,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "initializer_range": 0.1,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "bitnet": {
        "num_key_value_heads": 5,
        "hidden_act": "relu2",
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
    },
}
# By model type: what its attention has and no key tells.
_ATTENTION: dict[str, dict[str, bool]] = {"qwen2": {"attention_bias": True}, "qwen3": {"qk_norm": True}}
MODEL_TYPES = (*_CLASS_DEFAULTS, mmfreelm.MODEL_TYPE)
# Options of other programs, at the only value that our model computes. null is the same as a missing key.
_FIXED = {
    "mlp_bias": False,
    "pretraining_tp": 1,
    "partial_rotary_factor": 1.0,
    "weight_bits": 1,
    "input_bits": 8,
}
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "relu2": "relu2"}
# Other programs do not round the scales of their models.
_TERNARY: dict[str, Any] = {"linear": "ternary", "scale_dtype": "float32"}
# Ends of the names of norms.
_NORMS = ("norm", "_ln")
_HEAD_SCALE = "lm_head.weight_scale"
# The sub-norms of 1bitLLM's models. Their linears are ternary, but no key of their config tells it.
SUB_NORMS_OF_1BITLLM = {
    ".self_attn.inner_attn_ln.weight": ".self_attn.attn_sub_norm.weight",
    ".mlp.ffn_layernorm.weight": ".mlp.ffn_sub_norm.weight",
}


@dataclass(frozen=True)
class HubConfig:
    """The content of a config.json of another program."""

    model: ModelConfig
    kind: Kind
    inverted_scales: bool = False
    """True if codes are divided by their `weight_scale`, and not multiplied."""


def read_hub_config(content: dict[str, Any], tensor_names: Collection[str]) -> HubConfig:
    """Return the model of a config.json, next to weight files that hold tensors of these names.

    Raises ValueError naming the key, the value found and the value expected.
    """
    model_type = _model_type(content)
    _expect("model_type", model_type, *MODEL_TYPES)
    if model_type == mmfreelm.MODEL_TYPE:
        return HubConfig(mmfreelm.from_released(content), "latent")
    for key in (*_REQUIRED, *({"max_position_embeddings"} & set(content))):
        if not isinstance(content.get(key), int):
            raise ValueError(f"config.json: {key}: found {content.get(key)!r}, expected an integer")
    fixed = _FIXED if model_type == "qwen2" else _FIXED | {"attention_bias": False}  # a bias of o_proj too
    for key, value in fixed.items():
        _expect(key, content.get(key), None, value)
    has_1bitllm_norms = any(name.endswith(tuple(SUB_NORMS_OF_1BITLLM)) for name in tensor_names)
    of_1bitllm = has_1bitllm_norms or content.get("weight_bits") is not None
    fields = _fields(content, model_type)
    fields["sub_norm"] = model_type == "bitnet" or of_1bitllm
    if model_type == "minicpm":
        fields |= _minicpm_multipliers(content)
    _check_window(content, model_type, fields["max_seq_len"], fields["num_layers"])
    quantization = content.get("quantization_config")
    if quantization is None:
        return HubConfig(ModelConfig(**(fields | (_TERNARY if of_1bitllm else {}))), "latent")
    return _quantized(fields, quantization, tensor_names)


def _model_type(content: dict[str, Any]) -> Any:
    """Return the model type, which some MiniCPM leave to the name of their class."""
    is_minicpm = "model_type" not in content and content.get("architectures") == ["MiniCPMForCausalLM"]
    return "minicpm" if is_minicpm else content.get("model_type")


def _fields(content: dict[str, Any], model_type: str) -> dict[str, Any]:
    """Return the fields of a ModelConfig that have a key of their own."""
    defaults = _DEFAULTS | _CLASS_DEFAULTS[model_type]
    fields: dict[str, Any] = {field: content.get(key, defaults.get(key)) for field, key in HF_KEYS.items()}
    if fields["num_kv_heads"] is None:
        fields["num_kv_heads"] = fields["num_heads"]
    if fields["head_dim"] is None:
        fields["head_dim"] = defaults["head_dim"] or 0
    _expect("hidden_act", fields["activation"], *_ACTIVATIONS)
    fields["activation"] = _ACTIVATIONS[fields["activation"]]
    theta, fields["rope_scaling"] = from_hf_rope(content, fields["max_seq_len"])
    if theta is not None:
        fields["rope_theta"] = theta
    fields |= _ATTENTION.get(model_type, {})
    for field in ("bos_id", "eos_id"):
        if HF_KEYS[field] not in content and (fields[field] or 0) >= content["vocab_size"]:
            fields[field] = None  # the default id of a class is for the vocabulary of its first model
    if isinstance(fields["eos_id"], list):  # several tokens end a turn; the first one ends a document
        fields["eos_id"] = fields["eos_id"][0] if fields["eos_id"] else None
    return fields


def _minicpm_multipliers(content: dict[str, Any]) -> dict[str, float]:
    """Return the multipliers of a MiniCPM. Raises ValueError on parts of later ones that are not computed here."""
    for key in ("sparse_config", "mup_denominator", "kv_lora_rank"):
        _expect(key, content.get(key), None)
    found = {key: content.get(key, 1) for key in ("scale_emb", "scale_depth", "dim_model_base")}
    for key, value in found.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"config.json: {key}: found {value!r}, expected a number")
    # ModelConfig names sizes below 1.
    layers, width = (max(1, content[key]) for key in ("num_hidden_layers", "hidden_size"))
    return {
        "embedding_multiplier": found["scale_emb"],
        "residual_multiplier": found["scale_depth"] / layers**0.5,
        "logit_multiplier": found["dim_model_base"] / width,
    }


def _check_window(content: dict[str, Any], model_type: str, max_seq_len: int, num_layers: int) -> None:
    """Raise ValueError where a layer sees a window that is shorter than the longest sequence.

    In a Qwen `use_sliding_window` turns the window on, from layer `max_window_layers`, or where `layer_types` says so.
    """
    window = content.get("sliding_window", _CLASS_DEFAULTS[model_type].get("sliding_window"))
    types, first = content.get("layer_types") or [], content.get("max_window_layers", 28)
    if not isinstance(types, list):
        raise ValueError(f"config.json: layer_types: found {types!r}, expected a list")
    if model_type in ("qwen2", "qwen3"):
        if types:
            has_window = any(kind != "full_attention" for kind in types)
        else:
            has_window = content.get("use_sliding_window", False) and not (
                isinstance(first, int) and first >= num_layers
            )
        window = window if has_window else None
    if window is not None and not (isinstance(window, int) and window >= max_seq_len):
        raise ValueError(
            f"config.json: sliding_window: found {window!r}, expected null, since our attention sees the whole "
            f"sequence; set max_position_embeddings (here {max_seq_len}) to at most the window to use the model so far"
        )


def _quantized(fields: dict[str, Any], quantization: Any, tensor_names: Collection[str]) -> HubConfig:
    """Return a model with a quantization_config. A missing key has the default of BitNetQuantConfig in transformers."""
    if not isinstance(quantization, dict):
        raise ValueError(f"config.json: quantization_config: found {quantization!r}, expected an object")
    _expect("quant_method", quantization.get("quant_method"), "bitnet")
    linear_class = quantization.get("linear_class", "bitlinear")
    mode = quantization.get("quantization_mode", "offline")
    _expect("linear_class", linear_class, "bitlinear", "autobitlinear")
    _expect("quantization_mode", mode, "offline", "online")
    _check_float_modules(quantization.get("modules_to_not_convert"))
    linear_norm = quantization.get("use_rms_norm", False)
    if linear_norm:
        _expect("quantization_config rms_norm_eps", quantization.get("rms_norm_eps", 1e-6), fields["norm_eps"])
    # transformers makes a head that the list does not name ternary too.
    ternary_head = _HEAD_SCALE in tensor_names and not fields["tie_word_embeddings"]
    config = ModelConfig(**fields | _TERNARY, linear_norm=linear_norm, ternary_head=ternary_head)
    if linear_class == "autobitlinear":
        return HubConfig(config, "latent" if mode == "online" else "packed")
    return HubConfig(config, "packed", inverted_scales=True)


def _check_float_modules(names: Any) -> None:
    """Raise ValueError where modules that stay floats are others than the head, the embedding and norms.

    They may be named by their paths. Embedding and norms are floats in any case.
    """
    if names is None:
        return
    last = [str(name).rpartition(".")[2] for name in names] if isinstance(names, list) else [""]
    if unknown := [name for name in last if name not in ("lm_head", "embed_tokens") and not name.endswith(_NORMS)]:
        raise ValueError(
            f"config.json: modules_to_not_convert: found {names!r}, expected ['lm_head'], with or without the "
            f"embedding and norms; {unknown[0]} would be a dense matrix in a ternary block"
        )


def _expect(key: str, found: Any, *expected: Any) -> None:
    if found not in expected:
        named = " or ".join(repr(value) for value in expected if value is not None)
        raise ValueError(f"config.json: {key}: found {found!r}, expected {named or None}")
