"""ModelConfig <-> Hugging Face config.json.

A model that transformers knows has its own model type (llama, qwen2, qwen3, bitnet); any other has the type `jaxlm`, so
that no program takes it for another model. Fields without a Hugging Face key are in one object, `jaxlm`, with the
format version.
"""

import json
from collections.abc import Callable
from typing import Any

from jaxlm.common.architecture import mmfreelm
from jaxlm.common.architecture.config import MULTIPLIERS, ModelConfig, config_from_dict, recorded_fields
from jaxlm.common.architecture.hf_rope import to_hf_rope
from jaxlm.common.architecture.mmfreelm import is_mmfreelm
from jaxlm.common.architecture.parameters import Kind

FORMAT_VERSION = 1

# ModelConfig field -> config.json key.
HF_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "max_seq_len": "max_position_embeddings",
    "rope_theta": "rope_theta",
    "norm_eps": "rms_norm_eps",
    "activation": "hidden_act",
    "tie_word_embeddings": "tie_word_embeddings",
    "initializer_range": "initializer_range",
    "bos_id": "bos_token_id",
    "eos_id": "eos_token_id",
    "pad_id": "pad_token_id",
}
OWN_KEYS = (
    "token_mixer",
    "fused_gate",
    "linear",
    "sub_norm",
    "linear_norm",
    "ternary_head",
    "embedding",
    "embedding_range",
    "scale_dtype",
    "rope_scaling",
    "qk_norm",
    "attention_bias",
    "scale_per",
    "activation_bits",
    "logit_softcap",
    *MULTIPLIERS,
)
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "bitnet": "BitNetForCausalLM",
    mmfreelm.MODEL_TYPE: mmfreelm.ARCHITECTURE,
    "jaxlm": "JaxlmForCausalLM",
}
# Model type -> keys of its config class in transformers without a field of ours. The biases of a Qwen2 have no key.
_OPTIONS: dict[str, dict[str, Any]] = {
    "qwen2": {"use_sliding_window": False},
    "qwen3": {"use_sliding_window": False, "attention_bias": False},
}


def hf_model_type(config: ModelConfig) -> str:
    """Return the transformers model type that computes this model, or "jaxlm" where there is none."""
    if is_mmfreelm(config):
        return mmfreelm.MODEL_TYPE
    if config.num_mlgru_layers or config.fused_gate or config.embedding != "float" or config.ternary_head:
        return "jaxlm"
    if not is_bitnet_form(config) or config.has_multipliers or config.logit_softcap is not None:
        return "jaxlm"
    heads_fill_hidden = config.num_heads * config.head_dim == config.hidden_size
    fits = {
        # In transformers attn_sub_norm is hidden_size wide, even where the heads together are not.
        "bitnet": config.linear == "ternary" and heads_fill_hidden,
        "qwen3": True,
        "qwen2": heads_fill_hidden,  # mlx-lm knows no other width of its heads
        # The Llama of transformers needs num_heads to divide hidden_size, even where head_dim is given.
        "llama": config.hidden_size % config.num_heads == 0,
    }
    options = {"bitnet": config.sub_norm, "qwen3": config.qk_norm, "qwen2": config.attention_bias}
    chosen = [name for name, is_chosen in options.items() if is_chosen] or ["llama"]
    return chosen[0] if len(chosen) == 1 and fits[chosen[0]] else "jaxlm"


def is_bitnet_form(config: ModelConfig) -> bool:
    """Return True if ternary weights have one scale a matrix and int8 activations, as `quantization_config` says."""
    return config.scale_per == "tensor" and config.activation_bits == 8


def to_hf_config(config: ModelConfig, kind: Kind, float_dtype: str) -> dict[str, Any]:
    """Return the config.json of an artifact of this kind whose floats are stored as `float_dtype`."""
    model_type = hf_model_type(config)
    content: dict[str, Any] = {"architectures": [ARCHITECTURES[model_type]], "model_type": model_type}
    if model_type == mmfreelm.MODEL_TYPE:
        content |= mmfreelm.to_released(config) | {"dtype": float_dtype}
    else:
        content |= {key: getattr(config, field) for field, key in HF_KEYS.items()}
        content |= _OPTIONS.get(model_type) or {"attention_bias": config.attention_bias, "mlp_bias": False}
        content |= {"dtype": float_dtype}
        if config.rope_scaling is not None:
            content["rope_scaling"] = to_hf_rope(config.rope_scaling)
        if config.logit_softcap is not None:
            content["final_logit_softcapping"] = config.logit_softcap
    if config.linear == "ternary" and is_bitnet_form(config):
        content["quantization_config"] = {
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": "online" if kind == "latent" else "offline",
            "use_rms_norm": config.linear_norm,
            "rms_norm_eps": config.norm_eps,
            "modules_to_not_convert": [] if config.ternary_head else ["lm_head"],
        }
    content["jaxlm"] = own_object(config, kind)
    return content


def own_object(config: ModelConfig, kind: Kind) -> dict[str, Any]:
    """Return the object `jaxlm` of a config.json: the fields without a Hugging Face key."""
    recorded = json.loads(json.dumps(recorded_fields(config)))  # tuples become lists, as in the file
    own = {field: recorded[field] for field in OWN_KEYS if field in recorded}
    return {"format_version": FORMAT_VERSION, "kind": kind, **own}


def own_fields(content: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a ModelConfig that are in the object `jaxlm` of a config.json."""
    own = content["jaxlm"]
    return {field: own[field] for field in OWN_KEYS if field in own}


def from_hf_config(content: dict[str, Any]) -> tuple[ModelConfig, Kind, str]:
    """Return the config, the artifact's kind and its float dtype from a config.json that this project wrote.

    Raises ValueError on any key that `to_hf_config` would not write, see `from_own_config`.
    """
    return from_own_config(content, to_hf_config)


def from_own_config(
    content: dict[str, Any], write: Callable[[ModelConfig, Kind, str], dict[str, Any]]
) -> tuple[ModelConfig, Kind, str]:
    """Return the config, the artifact's kind and its float dtype from a config.json that `write` made.

    The config is written again with `write`, and every key that differs is an error, so no key is silently ignored.
    Raises ValueError naming the key, the value found and the value expected.
    """
    own = content.get("jaxlm")
    if not isinstance(own, dict):
        raise ValueError("config.json: found no 'jaxlm' object; this directory was not written by jaxlm")
    if own.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"config.json: found format_version {own.get('format_version')!r}, expected {FORMAT_VERSION}; "
            "use the release of jaxlm that wrote it"
        )
    kind, float_dtype = own.get("kind"), content.get("dtype")
    if kind not in ("latent", "packed"):
        raise ValueError(f"config.json: found kind {kind!r}, expected 'latent' or 'packed'")
    if float_dtype not in ("float32", "bfloat16"):
        raise ValueError(f"config.json: found dtype {float_dtype!r}, expected 'float32' or 'bfloat16'")
    keys = mmfreelm.KEYS if content.get("model_type") == mmfreelm.MODEL_TYPE else HF_KEYS
    fields = {field: content[key] for field, key in keys.items() if key in content}
    fields |= own_fields(content)
    config = config_from_dict(fields)
    _check_same("config.json", content, write(config, kind, float_dtype))
    return config, kind, float_dtype


def _check_same(where: str, found: dict[str, Any], expected: dict[str, Any]) -> None:
    for key in sorted(set(found) | set(expected)):
        if key not in expected:
            raise ValueError(f"{where}: unknown key {key!r} with value {found[key]!r}")
        if key not in found:
            raise ValueError(f"{where}: missing key {key!r}, expected {expected[key]!r}")
        if isinstance(expected[key], dict) and isinstance(found[key], dict):
            _check_same(f"{where} {key}", found[key], expected[key])
        elif found[key] != expected[key]:
            raise ValueError(f"{where} {key}: found {found[key]!r}, expected {expected[key]!r}")
