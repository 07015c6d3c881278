"""ModelConfig <-> the metadata of a GGUF file, for llama.cpp's architectures llama, qwen2, qwen3 and bitnet.

qwen2 is llama with biases of q, k and v, and qwen3 with a norm on every query and key head. bitnet is llama with a norm
before o_proj and down_proj; its head is always the embedding table.
"""

from collections.abc import Callable, Mapping
from reprlib import repr as _shown  # a value from a file may be long
from typing import Any

import numpy as np

from jaxlm.common.architecture.config import MULTIPLIERS, ModelConfig
from jaxlm.common.gguf.rope import NEUTRAL_ROPE, ROPE_KEYS, computes_scaling, from_rope_metadata, to_rope_metadata

ARCHITECTURE_KEY = "general.architecture"
# ModelConfig field -> key below the architecture's name.
KEYS = {
    "max_seq_len": "context_length",
    "hidden_size": "embedding_length",
    "num_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_heads": "attention.head_count",
    "num_kv_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
}
# Fields whose default llama.cpp derives from other keys.
OPTIONAL = ("num_kv_heads", "head_dim", "rope_theta")
# Head widths that have to equal head_dim.
HEAD_WIDTHS = ("attention.value_length", "rope.dimension_count")
TOKEN_KEYS = {
    "bos_id": "tokenizer.ggml.bos_token_id",
    "eos_id": "tokenizer.ggml.eos_token_id",
    "pad_id": "tokenizer.ggml.padding_token_id",
}
VOCAB_KEY = "vocab_size"
TOKENS_KEY = "tokenizer.ggml.tokens"
ACTIVATION_KEY = "hidden_activation"
# The key that names SiLU in files of this project; llama.cpp ignores it. "silu" under llama.cpp's own key fails: builds
# that read it expect a gate fused with the up projection.
OWN_ACTIVATION_KEY = "jaxlm.activation"
# The key that says what ternary weights multiply, of this project too: 8 bits, or 0 for floats.
OWN_ACTIVATION_BITS_KEY = "jaxlm.activation_bits"
# Keys that change the model, with the values that leave it as it is.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.sliding_window": (0,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "use_parallel_residual": (False,),
    **NEUTRAL_ROPE,
}
# Keys without influence on the computation.
IGNORED = ("rope.scaling.finetuned", "tensor_data_layout")
# Architecture -> the fields that set it apart from llama.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"attention_bias": True},
    "qwen3": {"qk_norm": True},
    "bitnet": {"sub_norm": True},
}


def nearest_architecture(config: ModelConfig) -> str:
    """Return the architecture of a model, or that of its first peculiarity where no architecture computes it."""
    found = (name for name, fields in ARCHITECTURES.items() if any(getattr(config, field) for field in fields))
    return next(found, "llama")


def architecture(config: ModelConfig) -> str:
    """Return llama.cpp's architecture of a model. Raises ValueError where no architecture computes the model."""
    fits = {
        "token_mixer": not config.num_mlgru_layers,
        "linear_norm": not config.linear_norm,
        "fused_gate": not config.fused_gate,
        "embedding": config.embedding in ("float", "ternary"),
    }
    name = nearest_architecture(config)
    peculiar = ("attention_bias", "qk_norm", "sub_norm")
    fits |= {field: getattr(config, field) == (field in ARCHITECTURES[name]) for field in peculiar}
    fits |= {field: getattr(config, field) == 1 for field in MULTIPLIERS}
    fits["logit_softcap"] = config.logit_softcap is None
    fits["rope_scaling"] = computes_scaling(config.rope_scaling, name)
    if config.sub_norm:
        fits |= {
            "tie_word_embeddings": config.tie_word_embeddings,
            "head_dim": config.num_heads * config.head_dim == config.hidden_size,
            "activation": config.activation in ("silu", "relu2"),
        }
    else:
        fits["activation"] = config.activation == "silu"
    for field, fit in fits.items():
        if not fit:
            raise ValueError(
                f"{field}: found {getattr(config, field)!r}, which llama.cpp's architecture {name} does not compute; "
                "write it as packed, latent or an MLX directory"
            )
    return name


def to_metadata(config: ModelConfig) -> dict[str, Any]:
    """Return the GGUF metadata of a model, by key. Raises ValueError where llama.cpp cannot compute the model."""
    name = architecture(config)
    found: dict[str, Any] = {f"{name}.{key}": getattr(config, field) for field, key in KEYS.items()}
    found |= {f"{name}.{key}": config.head_dim for key in HEAD_WIDTHS}
    found |= {f"{name}.{key}": value for key, value in to_rope_metadata(config.rope_scaling).items()}
    found[f"{name}.{VOCAB_KEY}"] = config.vocab_size
    if name == "bitnet":
        key = f"{name}.{ACTIVATION_KEY}" if config.activation == "relu2" else OWN_ACTIVATION_KEY
        found[key] = config.activation
    if config.is_ternary and (name, config.scale_per, config.activation_bits) != ("bitnet", "tensor", 8):
        found[OWN_ACTIVATION_BITS_KEY] = config.activation_bits or 0
    return found | {
        key: getattr(config, field) for field, key in TOKEN_KEYS.items() if getattr(config, field) is not None
    }


def from_metadata(
    metadata: Mapping[str, Any], *, vocab_size: int, has_head: bool, log: Callable[[str], None]
) -> ModelConfig:
    """Return the dense model of a GGUF file from its metadata.

    `vocab_size` is the number of rows of the embedding, `has_head` is True if the file has an untied head, and `log`
    receives a line on an assumption. Raises ValueError naming a key that is missing, unknown, or at a value that
    ModelConfig cannot express.
    """
    name = metadata.get(ARCHITECTURE_KEY)
    if name not in ARCHITECTURES:
        raise ValueError(f"{ARCHITECTURE_KEY}: found {name!r}, expected {' or '.join(map(repr, ARCHITECTURES))}")
    if (parts := metadata.get("split.count", 1)) != 1:
        raise ValueError(f"split.count: found {parts!r}, expected 1; join the parts with llama-gguf-split --merge")
    own = {key.removeprefix(f"{name}."): value for key, value in metadata.items() if key.startswith(f"{name}.")}
    _check_keys(own, name)
    fields: dict[str, Any] = {
        field: _number(own, key, name) for field, key in KEYS.items() if field not in OPTIONAL or key in own
    }
    fields = {"num_kv_heads": fields["num_heads"]} | fields
    fields |= {field: metadata[key] for field, key in TOKEN_KEYS.items() if key in metadata}
    fields |= ARCHITECTURES[name]
    if name == "bitnet":
        fields["activation"] = _activation(own, metadata, log)
    try:
        fields["rope_scaling"] = from_rope_metadata(own, fields["max_seq_len"])
    except ValueError as error:
        raise ValueError(f"{name}.{error}") from error
    tied = name == "bitnet" or not has_head
    config = ModelConfig(**fields, vocab_size=vocab_size, tie_word_embeddings=tied)
    for key, expected in {VOCAB_KEY: vocab_size, **dict.fromkeys(HEAD_WIDTHS, config.head_dim)}.items():
        if own.get(key, expected) != expected:
            raise ValueError(f"{name}.{key}: found {own[key]!r}, expected {expected}")
    check_tokens(metadata, vocab_size)
    return config


def activation_bits(metadata: Mapping[str, Any], scale_per: str, log: Callable[[str], None]) -> int | None:
    """Return the bits of the activations of a ternary model, None for floats; `log` receives a line on an assumption.

    Raises ValueError where the metadata name a number that is neither 8 nor 0.
    """
    bits = metadata.get(OWN_ACTIVATION_BITS_KEY)
    if bits is None:
        if scale_per == "tensor":
            if metadata.get("general.architecture") != "bitnet":
                log(
                    f"{OWN_ACTIVATION_BITS_KEY} is missing, and a matrix has one scale: read with 8-bit activations, "
                    "as in BitNet; a model of float activations, such as TriLM, is read from its unpacked floats with "
                    "--as ternary"
                )
            return 8
        log(
            f"{OWN_ACTIVATION_BITS_KEY} is missing, and scales are per {scale_per}: read with float activations, as in "
            "Ternary-Bonsai and TriLM"
        )
        return None
    if bits not in (0, 8):
        raise ValueError(f"{OWN_ACTIVATION_BITS_KEY}: found {_shown(bits)}, expected 8, or 0 for floats")
    return bits or None


def check_tokens(metadata: Mapping[str, Any], vocab_size: int) -> None:
    """Raise ValueError where the tokenizer in the metadata does not have `vocab_size` tokens."""
    tokens = metadata.get(TOKENS_KEY)
    if tokens is not None and not (isinstance(tokens, list) and len(tokens) == vocab_size):
        found = f"{len(tokens)} tokens" if isinstance(tokens, list) else _shown(tokens)
        raise ValueError(f"{TOKENS_KEY}: found {found}, expected {vocab_size}, one per row of the embedding")


def _check_keys(own: Mapping[str, Any], name: str) -> None:
    known = {
        *KEYS.values(),
        *HEAD_WIDTHS,
        VOCAB_KEY,
        *ROPE_KEYS,
        *IGNORED,
        *([ACTIVATION_KEY] if name == "bitnet" else []),
    }
    for key, value in own.items():
        if key not in known and value not in NEUTRAL.get(key, ()):
            expected = " or ".join(map(repr, NEUTRAL[key])) if key in NEUTRAL else "no such key"
            raise ValueError(f"{name}.{key}: found {_shown(value)}, expected {expected}; our model cannot compute it")


def _number(own: Mapping[str, Any], key: str, name: str) -> int | float:
    value = own.get(key)
    if isinstance(value, float) and abs(value) <= np.finfo(np.float32).max:
        # The shortest number that is the same in float32: 1e-05, not 9.999999747378752e-06.
        return float(str(np.float32(value)))
    if type(value) is not int:
        raise ValueError(f"{name}.{key}: found {_shown(value)}, expected a number")
    return value


def _activation(own: Mapping[str, Any], metadata: Mapping[str, Any], log: Callable[[str], None]) -> str:
    activation = own.get(ACTIVATION_KEY, metadata.get(OWN_ACTIVATION_KEY))
    if activation is None:
        log(
            f"bitnet.{ACTIVATION_KEY} is missing: read as SiLU, as in llama.cpp; a model that was trained with relu2 "
            "(BitNet b1.58 2B-4T) needs activation relu2 in its config"
        )
        return "silu"
    if activation not in ("silu", "relu2"):
        raise ValueError(f"bitnet.{ACTIVATION_KEY}: found {activation!r}, expected 'silu' or 'relu2'")
    return activation
