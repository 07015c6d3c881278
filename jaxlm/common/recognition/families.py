"""Models of other families, told by their config.json, so that none is read as something else."""

from collections.abc import Iterator, Mapping
from typing import Any

_HADAMARD = "a Hadamard variant, whose activations are rotated before its weights"
_BINARY = "a binary model, whose weights have no zeros"
# Parts of the name of a key, or of a method of quantization, that name a Hadamard variant.
_HADAMARD_WORDS = ("hadamard", "rotation")
_METHOD_KEYS = ("quant_method", "mode", "format", "linear_class")
# Keys with the number of experts; 1 is a dense model.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_ATTENTION_LAYERS = {"full_attention", "sliding_attention", "attention"}
_RECURRENT = (
    "mamba_d_state",
    "ssm_cfg",
    "state_size",
    "linear_num_key_heads",
    "attn_layer_period",
    "full_attention_interval",
    "lru_width",
)
# Values of a key that leave the model as it is.
_NOTHING = (None, False, 0, "", "none", [], {})


def other_family(content: Mapping[str, Any]) -> str | None:
    """Return what a config.json says that the model is, where it is none that is read here, with the key that says it.

    Return None for a model that may be read.
    """
    for key in ("vision_config", "audio_config"):
        if content.get(key) is not None:
            return f"a model of text and images or sound ({key})"
    return _other_layers(content) or _other_weights(content)


def _other_layers(content: Mapping[str, Any]) -> str | None:
    model_type = content.get("model_type")
    name = f"model_type {model_type!r}"
    for key in _EXPERTS:
        experts = content.get(key)
        if isinstance(experts, int) and experts > 1:
            return f"a mixture of experts ({name}, {key} {experts})"
    if isinstance(model_type, str) and "moe" in model_type.lower():
        return f"a mixture of experts ({name})"
    types = content.get("layer_types")
    if others := sorted({str(kind) for kind in types} - _ATTENTION_LAYERS) if isinstance(types, list) else []:
        return f"a hybrid with layers of {', '.join(others)} ({name})"
    if key := next((key for key in _RECURRENT if content.get(key) is not None), None):
        return f"a hybrid or recurrent model ({name}, {key} {content[key]})"
    return None


def _other_weights(content: Mapping[str, Any]) -> str | None:
    quantization = content.get("quantization")
    if isinstance(quantization, Mapping) and quantization.get("bits") == 1:
        return f"{_BINARY} (quantization: bits 1)"
    for key, value in _pairs(content):
        words = str(value).lower() if key in _METHOD_KEYS else key.lower()
        if value not in _NOTHING and any(word in words for word in _HADAMARD_WORDS):
            return f"{_HADAMARD} ({key} {value!r})"
        if key in _METHOD_KEYS and "binary" in words:
            return f"{_BINARY} ({key} {value!r})"
    return None


def _pairs(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the keys and values of an object, and of the objects in it."""
    for key, value in content.items():
        yield str(key), value
        if isinstance(value, Mapping):
            yield from _pairs(value)
