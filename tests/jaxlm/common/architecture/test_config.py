import json

import pytest

from jaxlm.common.architecture.config import LATER_FIELDS, ModelConfig, config_from_dict, recorded_fields
from jaxlm.common.architecture.parameters import parameter_count, tensor_bytes, ternary_parameter_count
from jaxlm.common.architecture.presets import PRESETS, preset
from jaxlm.common.architecture.rotary import RopeScaling

SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, "num_heads: found 5, which does not divide hidden_size 32"),
        ({"num_kv_heads": 3}, "num_kv_heads: found 3, expected a divisor of num_heads 4"),
        ({"head_dim": 7}, "head_dim: found 7, expected an even number"),
        ({"num_layers": 0}, "num_layers: found 0, expected more than 0"),
        ({"hidden_size": "32"}, "hidden_size: found '32', expected int"),
        ({"num_layers": True}, "num_layers: found True, expected int"),
        ({"logit_softcap": 0}, "logit_softcap: found 0.0, expected more than 0 and finite, or null"),
        ({"logit_softcap": "30"}, "logit_softcap: found '30', expected float | None"),
        (
            {"activation": "rational", "intermediate_size": 60},
            "intermediate_size: found 60, expected a multiple of 8, the groups of activation 'rational'",
        ),
        ({"activation": "tanh"}, "activation: found 'tanh', expected one of 'silu', 'gelu', 'relu2', 'rational'"),
        ({"linear_norm": True}, "linear_norm: found True with linear 'dense'"),
        ({"ternary_head": True}, "ternary_head: found True with tie_word_embeddings"),
        (
            {"linear": "ternary", "intermediate_size": 66},
            "intermediate_size: found 66, expected a multiple of 4",
        ),
        ({"embedding": "ternary", "vocab_size": 301}, "vocab_size: found 301, expected a multiple of 4"),
        ({"eos_id": 300}, "eos_id: found 300, expected 0..299"),
        ({"norm_eps": 0.0}, "norm_eps: found 0.0, expected more than 0"),
        (
            {"token_mixer": ("mlgru", "mlgru", "attention")},
            "token_mixer: found a pattern of 3 layers",
        ),
        ({"token_mixer": "mamba"}, "token_mixer: found 'mamba', expected 'attention' or 'mlgru'"),
        ({"token_mixer": ()}, "token_mixer: found a pattern of 0 layers"),
        ({"token_mixer": "mlgru"}, "num_heads: found 4, but token_mixer mlgru has no attention; leave it out"),
        (
            {"token_mixer": "mlgru", "num_heads": 0, "num_kv_heads": 0, "rope_theta": 5e5},
            "rope_theta: found 500000.0",
        ),
        (
            {"token_mixer": "mlgru", "num_heads": 0, "num_kv_heads": 0, "qk_norm": True},
            "qk_norm: found True, but token_mixer mlgru has no attention; leave it out",
        ),
        ({"num_heads": 0}, "num_heads: found 0, expected more than 0"),
    ],
)
def test_fields_that_do_not_fit_together_are_refused(changes, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        ModelConfig(**SIZES | changes)


def test_later_fields_do_not_change_the_files_of_earlier_models():
    earlier = ModelConfig(**SIZES)
    assert not set(LATER_FIELDS) & set(recorded_fields(earlier))
    assert config_from_dict(recorded_fields(earlier)) == earlier
    later = ModelConfig(**SIZES, qk_norm=True, rope_scaling=RopeScaling(type="linear", factor=2))
    recorded = recorded_fields(later)
    assert (recorded["qk_norm"], recorded["rope_scaling"]["factor"]) == (True, 2.0) and "attention_bias" not in recorded
    assert config_from_dict(json.loads(json.dumps(recorded))) == later


def test_unknown_and_missing_settings_are_named():
    with pytest.raises(ValueError, match=r"unknown num_layer; known are vocab_size"):
        config_from_dict(SIZES | {"num_layer": 3})
    with pytest.raises(ValueError, match="missing vocab_size"):
        config_from_dict({name: value for name, value in SIZES.items() if name != "vocab_size"})


@pytest.mark.parametrize(
    ("name", "count"),
    [
        # Counted by transformers too (tests/witness/test_presets.py).
        ("ternary-tiny", 2_622_720),
        ("dense-tiny", 2_622_720),
        ("ternary-5m", 4_590_848),
        ("dense-5m", 4_590_848),
        ("ternary-25m", 27_271_680),
        ("dense-25m", 27_271_680),
        ("bitnet-700m", 728_839_680),
        ("bitnet-1.3b", 1_273_579_488),
        ("bitnet-3b", 3_324_381_440),
        ("bitnet-7b", 6_607_826_944),
        ("bitnet-2b-4t", 2_412_820_480),
        ("smollm2-135m", 134_515_008),
        ("smollm2-360m", 361_821_120),
        ("smollm2-1.7b", 1_711_376_384),
        # Published with the released models too.
        ("llama-3.2-1b", 1_235_814_400),
        ("llama-3.2-3b", 3_212_749_824),
        ("qwen2.5-0.5b", 494_032_768),
        ("qwen3-0.6b", 596_049_920),
        ("qwen3-1.7b", 1_720_574_976),
        ("qwen3-4b", 4_022_468_096),
        ("mistral-7b-v0.3", 7_248_023_552),
        ("bonsai-1.7b", 1_720_574_976),
        ("trilm-99m", 99_762_688),
        ("falcon-e-1b", 1_719_764_992),
        # Counted by hand from the released shapes.
        ("mmfree-370m", 374_108_160),
    ],
)
def test_parameter_counts(name, count):
    assert parameter_count(preset(name)) == count


def test_byte_counts_by_hand():
    config = ModelConfig(**SIZES, linear="ternary")
    block = 32 * 32 * 2 + 16 * 32 * 2 + 64 * 32 * 3
    floats = 300 * 32 + 2 * (32 + 32) + 32
    assert ternary_parameter_count(config) == 2 * block
    assert parameter_count(config) == 2 * block + floats
    assert tensor_bytes(config, "latent") == 4 * (2 * block + floats)
    assert tensor_bytes(config, "latent", "bfloat16") == 2 * (2 * block + floats)
    # 2 bits per weight, and one bfloat16 scale for each of 7 matrices per layer.
    assert tensor_bytes(config, "packed") == 2 * block // 4 + 2 * 7 * 2 + 4 * floats


def test_the_presets_of_five_million_are_of_one_size():
    counts = {name: parameter_count(preset(name)) for name in PRESETS if name.endswith("-5m")}
    assert len(counts) == 4
    assert all(4.5e6 < count < 5e6 for count in counts.values()), counts
    assert ternary_parameter_count(preset("dense-5m")) == 0


def test_an_unknown_preset_lists_the_known():
    with pytest.raises(ValueError, match="preset: found 'tiny', expected one of ternary-tiny, "):
        preset("tiny")


@pytest.mark.parametrize("mixer", [5, None, 0.5, {"attention": 1}, ["attention", 5], [["attention"]]])
def test_a_token_mixer_of_another_type_is_refused(mixer):
    sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_layers": 2, "num_heads": 1}
    with pytest.raises(ValueError, match="token_mixer: found"):
        config_from_dict(sizes | {"num_kv_heads": 1, "token_mixer": mixer})
