"""Adapters: added to a model, and refused if they do not fit."""

import pytest

from jaxlm.common.artifact.blank_artifact import save_blank_artifact
from mlxlm.adapters.adapter_config import AdapterConfig
from mlxlm.adapters.adapters import add_adapters
from mlxlm.load import load_model
from mlxlm.model.trees import flat_arrays


@pytest.fixture
def model(tiny_config, tmp_path):
    save_blank_artifact(tmp_path / "artifact", tiny_config, seed=1)
    return load_model(tmp_path / "artifact")[0]


def test_a_short_name_means_every_layer_of_that_name(model):
    config = add_adapters(model, AdapterConfig(keys=("q_proj", "mlp.down_proj")))
    assert config.keys == ("mlp.down_proj", "self_attn.q_proj") and config.num_layers == 2
    assert len(flat_arrays(model.trainable_parameters())) == 2 * 2 * 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"rank": 17},
            r"rank: found 17, expected at most 16, the smaller side of layers.0.self_attn.v_proj",
        ),
        ({"keys": ("c_attn",)}, "keys: found 'c_attn', expected linear layers of the blocks: mlp.down_proj"),
        ({"num_layers": 3}, "num_layers: found 3, expected at most the model's 2"),
    ],
)
def test_adapters_that_do_not_fit_are_refused_and_change_nothing(model, settings, message):
    before = list(flat_arrays(model.parameters()))
    with pytest.raises(ValueError, match=message):
        add_adapters(model, AdapterConfig(**settings))
    assert list(flat_arrays(model.parameters())) == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank: found 0, expected at least 1"),
        ({"scale": 0.0}, "scale: found 0.0, expected more than 0 and finite"),
        ({"scale": float("inf")}, "scale: found inf, expected more than 0 and finite"),
        ({"dropout": 1.0}, "dropout: found 1.0, expected at least 0, less than 1"),
    ],
)
def test_a_value_out_of_range_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AdapterConfig(**settings)
