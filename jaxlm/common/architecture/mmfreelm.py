"""Config keys and tensor names of the released MatMul-free models (arXiv 2406.02528, ridgerchu/matmulfreellm)."""

from typing import Any

from jaxlm.common.architecture.config import ModelConfig, config_from_dict

MODEL_TYPE = "hgrn_bit"
ARCHITECTURE = "HGRNBitForCausalLM"

# ModelConfig field -> config.json key.
KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "max_seq_len": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "tie_word_embeddings": "tie_word_embeddings",
    "initializer_range": "initializer_range",
    "bos_id": "bos_token_id",
    "eos_id": "eos_token_id",
    "pad_id": "pad_token_id",
}
# Options of the released program, at the only values that released models have.
FIXED = {
    "attn_mode": "fused_recurrent",
    "num_heads": 1,
    "expand_ratio": 1,
    "use_short_conv": False,
    "conv_size": 4,
    "share_conv_kernel": True,
    "use_lower_bound": True,
    "hidden_act": "swish",
}
# Keys without influence on the computation.
IGNORED = {
    "_name_or_path",
    "architectures",
    "auto_map",
    "dtype",
    "fuse_cross_entropy",
    "fuse_norm",
    "hidden_ratio",
    "model_type",
    "rotary_embeddings",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
_ARCHITECTURE_FIELDS = {
    "token_mixer": ("mlgru",),
    "linear": "ternary",
    "linear_norm": True,
    "fused_gate": True,
    "ternary_head": True,
    "tie_word_embeddings": False,
    "sub_norm": False,
    "activation": "silu",
    "embedding": "float",
    "logit_softcap": None,
}
_RENAMED = (
    ("model.embed_tokens.", "model.embeddings."),
    ("model.lower_bounds.weight", "model.lower_bounds"),
    (".input_layernorm.", ".attn_norm."),
    (".post_attention_layernorm.", ".mlp_norm."),
    (".mlgru.", ".attn."),
    (".rms_norm.", ".norm."),
)


def is_mmfreelm(config: ModelConfig) -> bool:
    """Return True if the released program computes this model."""
    return all(getattr(config, field) == value for field, value in _ARCHITECTURE_FIELDS.items())


def released_name(name: str) -> str:
    """Return the released name of a tensor from our name."""
    for ours, theirs in _RENAMED:
        name = name.replace(ours, theirs)
    return name


def to_released(config: ModelConfig) -> dict[str, Any]:
    """Return the config.json of a model in the released form."""
    return {key: getattr(config, field) for field, key in KEYS.items()} | FIXED | {"hidden_ratio": 4}


def from_released(content: dict[str, Any]) -> ModelConfig:
    """Return the model of a released config.json. Its scales were never rounded, so they stay float32.

    Raises ValueError on an option that no released model has, and on an unknown key.
    """
    for key, value in FIXED.items():
        if (found := content.get(key, value)) != value:
            raise ValueError(
                f"config.json: {key}: found {found!r}, expected {value!r}, which every released {MODEL_TYPE} has"
            )
    if unknown := set(content) - set(KEYS.values()) - set(FIXED) - IGNORED:
        raise ValueError(f"config.json: unknown key {min(unknown)!r} with value {content[min(unknown)]!r}")
    fields = {field: content[key] for field, key in KEYS.items() if content.get(key) is not None}
    hidden_size, ratio = content.get("hidden_size"), content.get("hidden_ratio") or 4
    if "intermediate_size" not in fields and isinstance(hidden_size, int) and isinstance(ratio, int):
        fields["intermediate_size"] = 256 * -(-int(hidden_size * ratio * 2 / 3) // 256)
    return config_from_dict(_ARCHITECTURE_FIELDS | {"norm_eps": 1e-6, "scale_dtype": "float32"} | fields)
