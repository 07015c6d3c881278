"""Named model configurations. A trained tokenizer replaces the vocabulary size of the small ones."""

import math
from typing import Any

from jaxlm.common.architecture.config import LATER_FIELDS, ModelConfig
from jaxlm.common.architecture.parameters import parameter_count
from jaxlm.common.architecture.rotary import RopeScaling
from jaxlm.common.help import nearest


def bitnet(**fields) -> ModelConfig:
    """Return a BitNet b1.58 with sub-norms. Its default gate is SiLU, which every build of llama.cpp computes right."""
    return ModelConfig(**({"linear": "ternary", "sub_norm": True} | fields))


def mmfree(**fields) -> ModelConfig:
    """Return a MatMul-free language model (arXiv 2406.02528) with the fields of the released ones."""
    released = {
        "token_mixer": "mlgru",
        "linear": "ternary",
        "linear_norm": True,
        "fused_gate": True,
        "tie_word_embeddings": False,
        "ternary_head": True,
        "norm_eps": 1e-6,
        "vocab_size": 32000,
        "bos_id": 1,
        "eos_id": 2,
    }
    return ModelConfig(**(released | fields))


def _smollm2(**fields) -> ModelConfig:
    return ModelConfig(vocab_size=49152, max_seq_len=8192, **fields)


def _llama3_2(**fields) -> ModelConfig:
    return ModelConfig(
        vocab_size=128256,
        intermediate_size=8192,
        num_kv_heads=8,
        max_seq_len=131072,
        rope_theta=500000.0,
        rope_scaling=RopeScaling(type="llama3", factor=32.0, original_max_seq_len=8192),
        bos_id=128000,
        eos_id=128001,
        **fields,
    )


def _qwen(**fields) -> ModelConfig:
    return ModelConfig(vocab_size=151936, rope_theta=1000000.0, norm_eps=1e-6, bos_id=151643, **fields)


def _qwen3(**fields) -> ModelConfig:
    common = {"num_kv_heads": 8, "head_dim": 128, "max_seq_len": 40960, "qk_norm": True, "eos_id": 151645}
    return _qwen(**(common | fields))


_TINY = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "max_seq_len": 512,
    "embedding_range": 0.05,
}
_FIVE_MILLION: dict[str, Any] = _TINY | {"intermediate_size": 512, "num_layers": 6}
_SMALL = {
    "vocab_size": 4096,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_layers": 8,
    "num_heads": 8,
    "num_kv_heads": 4,
    "max_seq_len": 1024,
    "embedding_range": 0.05,
}

_QWEN3_1_7B: dict[str, Any] = {"hidden_size": 2048, "intermediate_size": 6144, "num_layers": 28, "num_heads": 16}
_ATTENTION = {"num_heads", "num_kv_heads"}


def _without_attention(shape: dict) -> dict:
    return {name: value for name, value in shape.items() if name not in _ATTENTION}


PRESETS: dict[str, ModelConfig] = {
    "ternary-tiny": ModelConfig(**_TINY, linear="ternary"),
    "dense-tiny": ModelConfig(**_TINY),
    "ternary-5m": ModelConfig(**_FIVE_MILLION, linear="ternary"),
    "dense-5m": ModelConfig(**_FIVE_MILLION),
    "ternary-25m": ModelConfig(**_SMALL, linear="ternary"),
    "dense-25m": ModelConfig(**_SMALL),
    "mmfree-tiny": mmfree(**_without_attention(_TINY)),
    "mmfree-5m": mmfree(**_without_attention(_FIVE_MILLION | {"num_layers": 4})),
    "mmfree-25m": mmfree(**_without_attention(_SMALL)),
    "hybrid-5m": ModelConfig(**_FIVE_MILLION, linear="ternary", token_mixer=("mlgru", "mlgru", "attention")),
    "hybrid-25m": ModelConfig(**_SMALL, linear="ternary", token_mixer=("mlgru", "mlgru", "mlgru", "attention")),
    "mmfree-370m": mmfree(hidden_size=1024, intermediate_size=2816, num_layers=24),
    "mmfree-1.3b": mmfree(hidden_size=2048, intermediate_size=5632, num_layers=24),
    "mmfree-2.7b": mmfree(hidden_size=2560, intermediate_size=6912, num_layers=32),
    "bitnet-700m": bitnet(
        vocab_size=32000,
        hidden_size=1536,
        intermediate_size=4096,
        num_layers=24,
        num_heads=24,
        num_kv_heads=24,
    ),
    "bitnet-1.3b": bitnet(
        vocab_size=32000,
        hidden_size=2048,
        intermediate_size=5460,
        num_layers=24,
        num_heads=32,
        num_kv_heads=32,
    ),
    "bitnet-3b": bitnet(
        vocab_size=32000,
        hidden_size=3200,
        intermediate_size=8640,
        num_layers=26,
        num_heads=32,
        num_kv_heads=32,
    ),
    # The shape of Llama 7B. The feed-forward layer is 43 x 256 wide, so up to 256 chips can split it.
    "bitnet-7b": bitnet(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_layers=32,
        num_heads=32,
        num_kv_heads=32,
    ),
    "bitnet-2b-4t": bitnet(
        vocab_size=128256,
        hidden_size=2560,
        intermediate_size=6912,
        num_layers=30,
        num_heads=20,
        num_kv_heads=5,
        max_seq_len=4096,
        rope_theta=500000.0,
        activation="relu2",
        bos_id=128000,
        eos_id=128001,
    ),
    # Of the Spectra suite, with one scale a matrix; its larger models have several blocks of rows.
    "trilm-99m": ModelConfig(
        vocab_size=50304,
        hidden_size=512,
        intermediate_size=1280,
        num_layers=16,
        num_heads=8,
        num_kv_heads=8,
        linear="ternary",
        scale_dtype="float16",
        activation_bits=None,
        tie_word_embeddings=False,
    ),
    # Read off the tensors and the bytes of its released GGUF; its config.json was not at hand.
    "falcon-e-1b": ModelConfig(
        vocab_size=32768,
        hidden_size=2048,
        intermediate_size=9216,
        num_layers=24,
        num_heads=16,
        num_kv_heads=2,
        max_seq_len=8192,
        linear="ternary",
        scale_dtype="float32",
        tie_word_embeddings=False,
    ),
    "smollm2-135m": _smollm2(
        hidden_size=576,
        intermediate_size=1536,
        num_layers=30,
        num_heads=9,
        num_kv_heads=3,
        rope_theta=100000.0,
        initializer_range=1 / 24,
    ),
    "smollm2-360m": _smollm2(
        hidden_size=960,
        intermediate_size=2560,
        num_layers=32,
        num_heads=15,
        num_kv_heads=5,
        rope_theta=100000.0,
    ),
    "smollm2-1.7b": _smollm2(
        hidden_size=2048,
        intermediate_size=8192,
        num_layers=24,
        num_heads=32,
        num_kv_heads=32,
        rope_theta=130000.0,
    ),
    "llama-3.2-1b": _llama3_2(hidden_size=2048, num_layers=16, num_heads=32),
    "llama-3.2-3b": _llama3_2(hidden_size=3072, num_layers=28, num_heads=24),
    "qwen2.5-0.5b": _qwen(
        hidden_size=896,
        intermediate_size=4864,
        num_layers=24,
        num_heads=14,
        num_kv_heads=2,
        max_seq_len=32768,
        attention_bias=True,
        eos_id=151643,
    ),
    "qwen3-0.6b": _qwen3(hidden_size=1024, intermediate_size=3072, num_layers=28, num_heads=16),
    "qwen3-1.7b": _qwen3(**_QWEN3_1_7B),
    "bonsai-1.7b": _qwen3(
        **_QWEN3_1_7B,
        max_seq_len=32768,
        linear="ternary",
        embedding="ternary",
        scale_per="group:128",
        scale_dtype="float16",
        activation_bits=None,
    ),
    "qwen3-4b": _qwen3(hidden_size=2560, intermediate_size=9728, num_layers=36, num_heads=32),
    "mistral-7b-v0.3": ModelConfig(
        vocab_size=32768,
        hidden_size=4096,
        intermediate_size=14336,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        max_seq_len=32768,
        rope_theta=1000000.0,
        tie_word_embeddings=False,
        bos_id=1,
        eos_id=2,
    ),
}


def preset(name: str) -> ModelConfig:
    """Return the preset of that name. Raises ValueError listing the known ones, and the nearest."""
    if name not in PRESETS:
        hint = nearest(name, PRESETS)
        known = " `jaxlm presets` lists all" if hint else f", expected one of {', '.join(PRESETS)}"
        raise ValueError(f"preset: found {name!r}{hint}{known}")
    return PRESETS[name]


def nearest_preset(config: ModelConfig) -> str:
    """Return the name of the preset with the same linears and token mixers that is nearest in parameters.

    Raises ValueError where no preset has them.
    """
    same = [name for name, other in PRESETS.items() if _kind(other) == _kind(config)]
    if not same:
        raise ValueError(
            f"preset: found none with linear {config.linear!r} and token_mixer {', '.join(config.token_mixer)}"
        )
    count = parameter_count(config)
    return min(same, key=lambda name: abs(math.log(parameter_count(PRESETS[name]) / count)))


def _kind(config: ModelConfig) -> tuple[Any, ...]:
    return config.linear, config.token_mixer, *(getattr(config, name) for name in LATER_FIELDS)
