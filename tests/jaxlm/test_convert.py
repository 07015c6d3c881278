import dataclasses
import json

import jax
import numpy as np
import pytest

import jaxlm.convert
from jaxlm.convert import REPORT, compare, convert
from jaxlm.export import export_artifact
from jaxlm.load import artifact_params, load_model
from jaxlm.model import init_params
from jaxlm.spec.artifact import load_artifact
from jaxlm.spec.manifest import verify_manifest
from jaxlm.spec.names import tensor_bytes, ternary_parameter_count


@pytest.fixture
def latent(tiny_config, tmp_path, tokenizer):
    (tmp_path / "tokenizer").mkdir()
    tokenizer.save(tmp_path / "tokenizer")
    params = jax.jit(init_params, static_argnums=0)(tiny_config, jax.random.key(0))
    export_artifact(tmp_path / "latent", tiny_config, params, "latent", tokenizer_dir=tmp_path / "tokenizer")
    return tmp_path / "latent"


def test_packed_is_the_same_model_at_the_predicted_size(latent, tmp_path, tiny_config, tokenizer):
    report = convert(latent, tmp_path / "packed", "packed")
    assert report.exact and report.top1_agreement == 1.0 and report.logits_max_difference == 0.0
    assert report.bytes_found == tensor_bytes(tiny_config, "packed")
    assert report.ternary_codes == ternary_parameter_count(tiny_config)
    verify_manifest(tmp_path / "packed")
    assert json.loads((tmp_path / "packed" / REPORT).read_text())["codes_differing"] == 0
    _, _, loaded = load_model(tmp_path / "packed")
    assert loaded is not None and loaded.fingerprint == tokenizer.fingerprint


def test_packed_again_is_equal_to_the_byte(latent, tmp_path):
    convert(latent, tmp_path / "packed", "packed")
    convert(tmp_path / "packed", tmp_path / "again", "packed")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("packed", "again")]
    assert files[0] == files[1]


def test_latent_there_and_back_is_the_identity(latent, tmp_path):
    convert(latent, tmp_path / "again", "latent")
    trees = [artifact_params(load_artifact(path)) for path in (latent, tmp_path / "again")]
    jax.tree.map(np.testing.assert_array_equal, *trees)


def test_bfloat16_rounds_what_is_not_ternary_and_says_by_how_much(latent, tmp_path):
    report = convert(latent, tmp_path / "packed", "packed", "bfloat16")
    assert report.exact
    assert 0 < report.logits_max_difference < 0.5


def test_latent_weights_of_a_packed_model_are_refused(latent, tmp_path):
    convert(latent, tmp_path / "packed", "packed")
    with pytest.raises(ValueError, match="latent weights were asked of a packed model, which holds none"):
        convert(tmp_path / "packed", tmp_path / "latent2", "latent")
    assert not (tmp_path / "latent2").exists()


def test_a_code_that_differs_fails_the_conversion_and_leaves_nothing(latent, tmp_path, monkeypatch):
    honest = jaxlm.convert.stored_tensor_reader

    def lying(*args):
        read = honest(*args)

        def one_code_off(name):
            array = read(name)
            if name == "model.layers.1.mlp.up_proj.weight":
                code = array[0, 0] % 4  # of row 0, in the two lowest bits
                array[0, 0] = int(array[0, 0]) + (1 if code < 2 else -2)  # another of the three codes
            return array

        return one_code_off

    monkeypatch.setattr(jaxlm.convert, "stored_tensor_reader", lying)
    with pytest.raises(ValueError, match=r"not written: .* 1 codes and 0 scales unlike the source"):
        convert(latent, tmp_path / "packed", "packed")
    assert not (tmp_path / "packed").exists()


def test_compare_sees_a_scale_that_differs(latent, tmp_path, tiny_config):
    convert(latent, tmp_path / "packed", "packed")
    _, params, _ = load_model(latent)
    params["layers"]["mlp"]["up_proj"]["weight"] = params["layers"]["mlp"]["up_proj"]["weight"] * 1.1
    report = compare(tiny_config, params, load_artifact(tmp_path / "packed"))
    assert report.scales_differing == 2 and not report.exact


def test_a_dense_model_has_nothing_to_pack(tiny_config, tmp_path):
    config = dataclasses.replace(tiny_config, linear="dense")
    params = jax.jit(init_params, static_argnums=0)(config, jax.random.key(0))
    export_artifact(tmp_path / "dense", config, params, "latent")
    with pytest.raises(ValueError, match="a dense model, which has nothing to pack"):
        convert(tmp_path / "dense", tmp_path / "packed", "packed")


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no such file or directory"):
        convert(tmp_path / "missing", tmp_path / "packed", "packed")
    with pytest.raises(ValueError, match=r"found no config\.json, expected a model directory"):
        convert(tmp_path, tmp_path / "packed", "packed")
