"""Rotary frequencies and their scaling. The numbers are what transformers 5.24.0 computes, in float32."""

import numpy as np
import pytest

from jaxlm.common.architecture.config import ModelConfig, config_from_dict
from jaxlm.common.architecture.hf_rope import from_hf_rope, to_hf_rope
from jaxlm.common.architecture.rotary import RopeScaling, rotary_attention_factor, rotary_frequencies

LLAMA_32_1B = RopeScaling(type="llama3", factor=32.0, original_max_seq_len=8192)
QWEN3 = RopeScaling(type="yarn", factor=4.0, original_max_seq_len=32768)
ODD = RopeScaling(
    type="yarn",
    factor=3.0,
    original_max_seq_len=2048,
    beta_slow=2.0,
    beta_fast=16.0,
    attention_factor=1.0306047740032145,
    truncate=False,
)
NARROW = RopeScaling(type="yarn", factor=4.0, original_max_seq_len=16, beta_fast=4.0)
LONGROPE = RopeScaling(type="longrope", original_max_seq_len=99, factors=(1.0, 1.5, 2.0, 4.0))
LINEAR = RopeScaling(type="linear", factor=2.5)


@pytest.mark.parametrize(
    ("head_dim", "theta", "scaling", "factor", "expected"),
    [
        (
            64,
            5e5,
            LLAMA_32_1B,
            1.0,
            {0: 1.0, 1: 0.66360128, 8: 0.037606031, 16: 0.00042955671, 24: 1.6619674e-06, 31: 9.4183065e-08},
        ),
        (
            128,
            1e6,
            QWEN3,
            1.138629436111989,
            {0: 1.0, 16: 0.031622779, 32: 0.00060294115, 48: 7.9056936e-06, 62: 3.8498163e-07, 63: 3.1023444e-07},
        ),
        (
            32,
            1e4,
            ODD,
            1.0306047740032145,
            {0: 1.0, 1: 0.56234133, 8: 0.0048992168, 12: 0.00033333333, 14: 0.00010540926, 15: 5.9275986e-05},
        ),
        (
            16,
            500.0,
            NARROW,
            1.138629436111989,
            {0: 1.0, 1: 0.28741455, 2: 0.05286856, 4: 0.01118034, 6: 0.002364354, 7: 0.0010872796},
        ),
        (8, 1e4, LONGROPE, 1.0, {0: 1.0, 1: 0.066666663, 2: 0.0049999999, 3: 0.00025000001}),
        (16, 1e4, LINEAR, 1.0, {0: 0.40000001, 1: 0.1264911, 2: 0.039999999, 4: 0.0039999997, 7: 0.00012649111}),
        (16, 1e4, None, 1.0, {0: 1.0, 1: 0.31622777, 4: 0.01, 7: 0.00031622777}),
    ],
)
def test_frequencies_are_those_of_transformers(head_dim, theta, scaling, factor, expected):
    found = rotary_frequencies(head_dim, theta, scaling)
    assert (found.dtype, found.shape) == (np.float64, (head_dim // 2,))
    np.testing.assert_allclose(found[list(expected)], list(expected.values()), rtol=3e-7)
    assert rotary_attention_factor(scaling) == pytest.approx(factor, rel=1e-12)


def test_bounds_of_yarn_that_meet_are_a_step():
    meeting = RopeScaling(type="yarn", factor=2.0, original_max_seq_len=4, beta_fast=1e6)
    found = rotary_frequencies(8, 1e4, meeting) / rotary_frequencies(8, 1e4)
    np.testing.assert_allclose(found, [1, 0.5, 0.5, 0.5])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"type": "dynamic", "factor": 2.0}, "rope_scaling type: found 'dynamic', expected 'linear' or 'llama3' or"),
        ({"type": "longrope", "original_max_seq_len": 8}, "rope_scaling factors: not given, type 'longrope' needs it"),
        (
            {"type": "longrope", "original_max_seq_len": 4096, "factors": "12"},
            "rope_scaling factors: found '12', expected numbers above 0",
        ),
        (
            {"type": "longrope", "original_max_seq_len": 4096, "factors": [1, 2, 3]},
            "rope_scaling factors: found 3, expected 4, half a head",
        ),
        ({"type": "linear"}, "rope_scaling: missing factor"),
        ({"type": "linear", "factor": 0.5}, "rope_scaling factor: found 0.5, expected a number of at least 1"),
        ({"type": "linear", "factor": "2"}, "rope_scaling factor: found '2', expected a number of at least 1"),
        ({"type": "linear", "factor": float("inf")}, "rope_scaling factor: found inf, expected a number"),
        (
            {"type": "linear", "factor": 2, "beta_fast": 32},
            "rope_scaling beta_fast: found 32, but type 'linear' has no",
        ),
        ({"type": "yarn", "factor": 2}, "rope_scaling original_max_seq_len: not given, type 'yarn' needs it"),
        ({"type": "yarn", "factor": 2, "original_max_seq_len": 8.5}, "found 8.5, expected an integer above 0"),
        (
            {"type": "yarn", "factor": 2, "original_max_seq_len": 8, "beta_slow": 40},
            "rope_scaling beta_fast: found 32.0, expected more than beta_slow 40.0",
        ),
        (
            {"type": "yarn", "factor": 2, "original_max_seq_len": 8, "truncate": 1},
            "rope_scaling truncate: found 1, expected true or false",
        ),
        (
            {"type": "llama3", "factor": 2, "original_max_seq_len": 8, "low_freq_factor": 4},
            "rope_scaling high_freq_factor: found 4.0, expected more than low_freq_factor 4.0",
        ),
        ({"type": "linear", "factor": 2, "scale": 1}, "rope_scaling: unknown scale; known are type, factor"),
        ("linear", "rope_scaling: found 'linear', expected"),
    ],
)
def test_a_scaling_that_does_not_fit_is_refused(fields, message):
    sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_layers": 1, "num_heads": 1}
    with pytest.raises(ValueError) as error:
        config_from_dict(sizes | {"num_kv_heads": 1, "rope_scaling": fields})
    assert message in str(error.value)


@pytest.mark.parametrize("scaling", [LLAMA_32_1B, QWEN3, ODD, NARROW, LINEAR, LONGROPE])
def test_the_object_of_a_config_json_is_read_back(scaling):
    written = to_hf_rope(scaling)
    assert from_hf_rope({"rope_scaling": written}, 99) == (None, scaling)
    assert from_hf_rope({"rope_parameters": written | {"rope_theta": 500.0}}, 99) == (500.0, scaling)


def test_defaults_of_yarn_are_left_out_for_programs_that_do_not_know_them():
    assert to_hf_rope(QWEN3) == {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32768,
        "beta_slow": 1.0,
        "beta_fast": 32.0,
    }


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({}, (None, None)),
        ({"rope_scaling": None}, (None, None)),
        ({"rope_scaling": {"type": "default"}, "rope_parameters": {"rope_theta": 7.0}}, (None, None)),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}}, (None, QWEN3)),
        ({"rope_scaling": {"type": "linear", "factor": 2.5, "partial_rotary_factor": 1.0}}, (None, LINEAR)),
        # transformers takes the longest sequence where the original one is missing.
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            (None, RopeScaling(type="yarn", factor=4.0, original_max_seq_len=64)),
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": None}, "original_max_position_embeddings": 16},
            (None, RopeScaling(type="yarn", factor=4.0, original_max_seq_len=16)),
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 3.0, "mscale": 1.0, "mscale_all_dim": 0.7}},
            (None, RopeScaling(type="yarn", factor=3.0, original_max_seq_len=64, attention_factor=1.0306047740032145)),
        ),
    ],
)
def test_spellings_and_defaults_of_transformers_are_read(content, expected):
    assert from_hf_rope(content, 64) == expected


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, "rope_scaling rope_type: found 'dynamic', expected default, linear"),
        ({"rope_type": "longrope"}, "rope_scaling factors: not given, type 'longrope' needs it"),
        ({"rope_type": "longrope", "factor": 8.0}, "unknown key 'factor' with rope_type 'longrope'"),
        (
            {"rope_type": "yarn", "factor": 2.0, "attn_scale": 1.0},
            "rope_scaling: unknown key 'attn_scale' with rope_type 'yarn'",
        ),
        ({"rope_type": "llama3", "factor": 2.0, "beta_fast": 1}, "unknown key 'beta_fast' with rope_type 'llama3'"),
        ({"rope_type": "linear"}, "rope_scaling: missing factor"),
        ({"rope_type": ["yarn"]}, "rope_scaling rope_type: found ['yarn'], expected default, linear"),
        ({"rope_type": "yarn", "factor": "4"}, "rope_scaling factor: found '4', expected a number"),
        (
            {"rope_type": "yarn", "original_max_position_embeddings": "8"},
            "rope_scaling original_max_position_embeddings: found '8', expected a number above 0",
        ),
        (
            {"rope_type": "yarn", "factor": 2.0, "mscale": 1.0, "mscale_all_dim": -14.4},
            "rope_scaling mscale_all_dim: found -14.4, expected a number above 0",
        ),
        ({"rope_type": "linear", "factor": 0.5}, "rope_scaling factor: found 0.5, expected a number of at least 1"),
        ({"rope_type": "linear", "factor": 2, "partial_rotary_factor": 0.5}, "partial_rotary_factor: found 0.5"),
    ],
)
def test_what_is_not_computed_here_is_refused(rope, message):
    with pytest.raises(ValueError) as error:
        from_hf_rope({"rope_scaling": rope}, 64)
    assert message in str(error.value) and str(error.value).startswith("config.json: ")


def test_a_model_with_a_scaling_can_be_a_key():
    sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_layers": 1, "num_heads": 1}
    one = ModelConfig(**sizes, num_kv_heads=1, rope_scaling=LINEAR)
    read = config_from_dict(sizes | {"num_kv_heads": 1, "rope_scaling": {"type": "linear", "factor": 2.5}})
    assert len({one, read}) == 1
    with pytest.raises(ValueError, match=r"rope_theta: found 1\.0, expected more than 1 with rope_scaling"):
        ModelConfig(**sizes, num_kv_heads=1, rope_scaling=QWEN3, rope_theta=1.0)
