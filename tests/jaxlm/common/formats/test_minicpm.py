"""config.json of MiniCPM: multipliers of embeddings, residuals and logits, and a factor for each frequency."""

import dataclasses

import pytest

from jaxlm.common.architecture.rotary import RopeScaling
from jaxlm.common.formats.hub_config import read_hub_config
from jaxlm.common.formats.mlx import needs_model_file

LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.5, 2.0, 4.0],
    "long_factor": [1.0, 2.0, 4.0, 8.0],
    "original_max_position_embeddings": 64,
}
MINICPM = {
    "architectures": ["MiniCPMForCausalLM"],
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "scale_emb": 12,
    "scale_depth": 1.4,
    "dim_model_base": 8,
    "rope_scaling": LONGROPE,
}


@pytest.mark.parametrize("model_type", [{}, {"model_type": "minicpm"}])
def test_its_multipliers_and_factors_are_read(model_type):
    config = read_hub_config(MINICPM | model_type, []).model
    assert (config.embedding_multiplier, config.residual_multiplier, config.logit_multiplier) == (12.0, 0.7, 0.25)
    assert config.rope_scaling == RopeScaling(type="longrope", original_max_seq_len=64, factors=(1.0, 1.5, 2.0, 4.0))
    assert (config.num_kv_heads, config.tie_word_embeddings, config.norm_eps) == (4, True, 1e-6)
    assert needs_model_file(config)
    plain = read_hub_config({key: value for key, value in MINICPM.items() if not key.startswith("scale")}, []).model
    assert (plain.embedding_multiplier, plain.residual_multiplier) == (1.0, 0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["OtherForCausalLM"]}, "model_type: found None, expected"),
        ({"scale_emb": "12"}, "scale_emb: found '12', expected a number"),
        ({"scale_depth": 0}, "residual_multiplier: found 0.0, expected more than 0"),
        ({"num_hidden_layers": 0}, "num_layers: found 0, expected more than 0"),
        ({"hidden_size": -32}, "found -8, expected more than 0"),
        ({"sparse_config": {"topk": 64}}, "sparse_config: found {'topk': 64}, expected None"),
        ({"kv_lora_rank": 256}, "kv_lora_rank: found 256, expected None"),
        (
            {"max_position_embeddings": 128},
            "max_position_embeddings: found 128, expected 64, original_max_position_embeddings of longrope",
        ),
        ({"rope_scaling": LONGROPE | {"short_factor": [1.0]}}, "factors: found 1, expected 4, half a head"),
        ({"rope_scaling": LONGROPE | {"short_factor": [1, 1, 1, 0]}}, "found (1, 1, 1, 0), expected numbers above 0"),
        ({"rope_scaling": LONGROPE | {"short_factor": None}}, "factors: not given, type 'longrope' needs it"),
    ],
)
def test_what_is_not_computed_here_is_refused(change, message):
    with pytest.raises(ValueError) as error:
        read_hub_config(MINICPM | change, [])
    assert message in str(error.value)


def test_a_longer_sequence_than_that_of_the_factors_is_refused():
    config = read_hub_config(MINICPM, []).model
    with pytest.raises(ValueError, match="max_seq_len: found 65, expected at most rope_scaling's original_max_seq_len"):
        dataclasses.replace(config, max_seq_len=65)
