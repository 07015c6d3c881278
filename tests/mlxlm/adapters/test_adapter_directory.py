"""Directories of adapters: saved, loaded here and by stock mlx-lm, and refused if they do not fit the model."""

import dataclasses
import json

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map
from mlx_lm.tuner.utils import load_adapters as stock_load_adapters
from mlx_lm.utils import load_model as stock_load_model

from jaxlm.common.artifact.blank_artifact import save_blank_artifact
from jaxlm.common.formats.mlx import needs_model_file, write_mlx
from jaxlm.common.formats.open_model import open_model
from mlxlm.adapters.adapter_config import AdapterConfig
from mlxlm.adapters.adapter_directory import CONFIG, WEIGHTS, load_adapters, save_adapters
from mlxlm.adapters.adapters import add_adapters
from mlxlm.load import load_model
from mlxlm.model.model_file import model_file_source
from mlxlm.model.trees import flat_arrays
from shared_tokenizer.manifest import DamagedError, sealed_directory, write_manifest
from tests.conftest import VARIANTS

TOKENS = mx.array([[1, 5, 9, 200, 3]])


@pytest.fixture(params=["ternary", "dense", "mlgru", "hybrid"])
def artifact(request, tiny_config, tmp_path):
    changes = VARIANTS[request.param] | ({"activation": "silu"} if request.param == "dense" else {})
    save_blank_artifact(tmp_path / "artifact", dataclasses.replace(tiny_config, **changes), seed=1)
    return tmp_path / "artifact"


def trained(model, config):
    """Add adapters and give them numbers as training would."""
    config = add_adapters(model, config)
    keys = iter(mx.random.split(mx.random.key(0), 1000))
    model.update(tree_map(lambda x: 0.1 * mx.random.normal(x.shape, key=next(keys)), model.trainable_parameters()))
    return config


def test_saved_adapters_are_loaded_here_and_by_stock_mlx_lm(artifact, tmp_path):
    model, _ = load_model(artifact)
    bare = np.array(model(TOKENS))
    config = trained(model, AdapterConfig(rank=4, scale=2.0, num_layers=1))
    assert all(path.endswith(("lora_a", "lora_b")) for path in flat_arrays(model.trainable_parameters()))
    expected = np.array(model(TOKENS))
    assert np.abs(expected - bare).max() > 1e-2
    save_adapters(tmp_path / "adapters", model, config)

    np.testing.assert_array_equal(np.array(load_model(artifact)[0](TOKENS)), bare)
    ours, _ = load_model(artifact, adapter_path=tmp_path / "adapters")
    np.testing.assert_array_equal(np.array(ours(TOKENS)), expected)

    opened = open_model(artifact)
    source = model_file_source() if needs_model_file(opened.config) else None
    with sealed_directory(tmp_path / "mlx") as directory:
        write_mlx(directory, opened.config, opened.tensors.__getitem__, form="float", model_file=source)
    stock = stock_load_model(tmp_path / "mlx", strict=True, trust_remote_code=True)[0]
    found = stock_load_adapters(stock, str(tmp_path / "adapters"))(TOKENS)
    np.testing.assert_allclose(np.array(found), expected, atol=1e-4)


@pytest.fixture
def model(tiny_config, tmp_path):
    save_blank_artifact(tmp_path / "artifact", tiny_config, seed=1)
    return load_model(tmp_path / "artifact")[0]


@pytest.fixture
def saved(model, tmp_path):
    save_adapters(tmp_path / "adapters", model, trained(model, AdapterConfig(rank=4)))
    return tmp_path / "adapters"


def test_adapters_of_another_model_are_refused(saved, tiny_config, tmp_path):
    save_blank_artifact(tmp_path / "other", tiny_config, seed=2)
    with pytest.raises(ValueError, match="adapters of another model"):
        load_model(tmp_path / "other", adapter_path=saved)


def test_a_damaged_file_is_refused(saved, tmp_path):
    content = bytearray((saved / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (saved / WEIGHTS).write_bytes(content)
    with pytest.raises(DamagedError, match=r"adapters\.safetensors: damaged"):
        load_model(tmp_path / "artifact", adapter_path=saved)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_missing_file_is_refused(saved, tmp_path, name):
    (saved / name).unlink()
    with pytest.raises(ValueError, match=f"found no {name}"):
        load_model(tmp_path / "artifact", adapter_path=saved)


def _change(saved, change):
    content = json.loads((saved / CONFIG).read_text())
    change(content)
    (saved / CONFIG).write_text(json.dumps(content))
    write_manifest(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["lora_parameters"].update(rank=5),
            r"lora_a: found float32 \[64, 4\], expected float32 \[64, 5\]",
        ),
        (lambda c: c["lora_parameters"].update(rank="4"), "rank: found '4', expected a number"),
        (lambda c: c["lora_parameters"].update(alpha=4), "unknown alpha"),
        (lambda c: c["lora_parameters"].update(keys=["self_attn.q_proj"]), "unexpected tensor layers.0.mlp.down_proj"),
        (lambda c: c.update(fine_tune_type="dora"), "fine_tune_type: found 'dora', expected 'lora'"),
        (lambda c: c.pop("lora_parameters"), "found lora_parameters None and num_layers 2, expected an object"),
        (lambda c: c["jaxlm"].update(format_version=9), "expected format_version 1"),
    ],
)
def test_a_config_that_is_wrong_is_refused_and_changes_nothing(saved, tmp_path, change, message):
    _change(saved, change)
    model, _ = load_model(tmp_path / "artifact")
    before = list(flat_arrays(model.parameters()))
    with pytest.raises(ValueError, match=message):
        load_adapters(model, saved)
    assert list(flat_arrays(model.parameters())) == before


def test_adapters_that_mlx_lm_trained_are_loaded_without_a_manifest(saved, tmp_path):
    _change(saved, lambda content: (content.pop("jaxlm"), content.update(num_layers=16, batch_size=4)))
    (saved / "MANIFEST.sha256").unlink()
    model, _ = load_model(tmp_path / "artifact", adapter_path=saved)
    assert len(flat_arrays(model.trainable_parameters())) == 2 * 7 * 2
