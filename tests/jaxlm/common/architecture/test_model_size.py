import dataclasses
from typing import get_args

import pytest

from jaxlm.common.architecture.model_size import Architecture, config_of_size, parse_size
from jaxlm.common.architecture.parameters import parameter_count
from jaxlm.common.architecture.presets import nearest_preset, preset

ARCHITECTURES = get_args(Architecture)


@pytest.mark.parametrize(
    ("text", "parameters"),
    [
        ("350M", 350_000_000),
        ("1.5B", 1_500_000_000),
        ("300b", 300_000_000_000),
        ("1200000", 1_200_000),
        (" 2.5k ", 2_500),
        ("1T", 10**12),
        # A binary fraction would be one less.
        ("4.35M", 4_350_000),
    ],
)
def test_a_size_is_read(text, parameters):
    assert parse_size(text) == parameters


@pytest.mark.parametrize("text", ["", "M", "big", "-5M", "1e9", "3 50M", "1,000", "NaN", "0x10", "1.M", "٣M", "5G"])
def test_a_text_that_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match=r"params: found .*, expected a number of parameters such as 350M"):
        parse_size(text)


@pytest.mark.parametrize("text", ["0", "0.0B", "0.0001K", "1.001T", "9" * 400])
def test_a_size_out_of_range_is_refused(text):
    with pytest.raises(ValueError, match="expected more than 0 and at most 1T"):
        parse_size(text)


# Smallest size -> largest error of the number of parameters.
TOLERANCES = {1_000_000: 0.1, 10_000_000: 0.03, 100_000_000: 0.015, 1_000_000_000: 0.011}


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("size", ["1M", "3M", "10M", "25M", "100M", "350M", "1B", "7B", "300B", "1T"])
def test_a_model_is_of_the_size_and_well_proportioned(size, arch):
    asked = parse_size(size)
    config = config_of_size(asked, arch)
    tolerance = next(tolerance for least, tolerance in reversed(TOLERANCES.items()) if asked >= least)
    assert abs(parameter_count(config) / asked - 1) <= tolerance
    assert config.hidden_size % 256 == 0 and config.intermediate_size % 256 == 0
    assert config.linear == ("dense" if arch == "dense" else "ternary")
    if config.has_attention:
        assert config.num_heads * config.head_dim == config.hidden_size and config.head_dim in (64, 128)
    if asked >= 10_000_000:
        assert 20 <= config.hidden_size / config.num_layers <= 160
        assert 2 <= config.intermediate_size / config.hidden_size <= 4
        assert 0.002 < config.vocab_size * config.hidden_size / asked < 0.15


def test_larger_models_have_larger_vocabularies_and_longer_sequences():
    configs = [config_of_size(parse_size(size), "dense") for size in ("1M", "5M", "50M", "150M", "1B", "20B")]
    for field in ("vocab_size", "max_seq_len", "hidden_size", "num_layers"):
        found = [getattr(config, field) for config in configs]
        assert found == sorted(found) and found[0] < found[-1], field


def test_heads_of_their_own():
    tied = {
        (arch, size): config_of_size(parse_size(size), arch).tie_word_embeddings
        for arch in ARCHITECTURES
        for size in ("100M", "7B")
    }
    # llama.cpp has no head for ternary models with sub-norms, and the MatMul-free model's is ternary.
    assert tied == {
        ("ternary", "100M"): True,
        ("ternary", "7B"): True,
        ("mmfree", "100M"): False,
        ("mmfree", "7B"): False,
        ("dense", "100M"): True,
        ("dense", "7B"): False,
    }


def test_a_given_vocabulary_is_kept_and_the_rest_makes_room():
    config = config_of_size(100_000_000, "ternary", vocab_size=64_000)
    assert config.vocab_size == 64_000
    assert abs(parameter_count(config) / 100_000_000 - 1) < 0.03


def test_a_size_that_the_vocabulary_exceeds_is_refused():
    with pytest.raises(ValueError, match="found 1,000,000, expected at least 8,585,984 with a vocabulary of 32,000"):
        config_of_size(1_000_000, "dense", vocab_size=32_000)
    with pytest.raises(ValueError, match="params: found 1, expected at least"):
        config_of_size(1, "ternary")
    with pytest.raises(ValueError, match="vocab_size: found 0, expected more than 0"):
        config_of_size(10**9, "dense", vocab_size=0)
    with pytest.raises(ValueError, match="vocab_size: found 1001, expected a multiple of 4"):
        config_of_size(10**9, "mmfree", vocab_size=1001)


def test_the_nearest_preset_is_of_the_same_kind():
    assert nearest_preset(config_of_size(2_400_000_000, "ternary")) == "bitnet-2b-4t"
    assert nearest_preset(config_of_size(400_000_000, "mmfree")) == "mmfree-370m"
    assert nearest_preset(config_of_size(10**11, "dense")) == "mistral-7b-v0.3"
    assert nearest_preset(preset("hybrid-5m")) == "hybrid-5m"
    with pytest.raises(ValueError, match="preset: found none with linear 'dense' and token_mixer mlgru"):
        nearest_preset(dataclasses.replace(preset("mmfree-tiny"), linear="dense", linear_norm=False))
