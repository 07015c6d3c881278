import dataclasses
import json

import jax
import numpy as np
import pytest

import jaxlm.conversion.convert
from jaxlm.checkpoints.export import export_artifact
from jaxlm.checkpoints.weights import artifact_params
from jaxlm.commands.other_programs import other_program
from jaxlm.common.architecture.parameters import parameter_count, tensor_bytes, ternary_parameter_count
from jaxlm.common.artifact.artifact import load_artifact
from jaxlm.conversion.convert import Conversion, convert
from jaxlm.conversion.output import REPORT, report_path
from jaxlm.load import load_model
from jaxlm.model.language_model import init_params
from shared_tokenizer.manifest import verify_manifest


@pytest.fixture
def latent(tiny_config, tmp_path, tokenizer):
    (tmp_path / "tokenizer").mkdir()
    tokenizer.save(tmp_path / "tokenizer")
    params = jax.jit(init_params, static_argnums=0)(tiny_config, jax.random.key(0))
    export_artifact(tmp_path / "latent", tiny_config, params, "latent", tokenizer_dir=tmp_path / "tokenizer")
    return tmp_path / "latent"


def test_packed_is_the_same_model_at_the_predicted_size(latent, tmp_path, tiny_config, tokenizer):
    report = convert(latent, tmp_path / "packed", Conversion(form="packed"))
    assert report.logits.top1_agreement == 1.0
    assert report.logits.max_difference == 0.0
    assert report.bytes_found == tensor_bytes(tiny_config, "packed")
    assert report.weights.ternary_codes == ternary_parameter_count(tiny_config)
    verify_manifest(tmp_path / "packed")
    assert json.loads((tmp_path / "packed" / REPORT).read_text())["weights"]["codes_differing"] == 0
    _, _, loaded = load_model(tmp_path / "packed")
    assert loaded is not None and loaded.fingerprint == tokenizer.fingerprint


def test_packed_again_is_equal_to_the_byte(latent, tmp_path):
    convert(latent, tmp_path / "packed", Conversion(form="packed"))
    convert(tmp_path / "packed", tmp_path / "again", Conversion(form="packed"))
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("packed", "again")]
    assert files[0] == files[1]


def test_latent_there_and_back_is_the_identity(latent, tmp_path):
    convert(latent, tmp_path / "again", Conversion(form="latent"))
    trees = [artifact_params(load_artifact(path)) for path in (latent, tmp_path / "again")]
    jax.tree.map(np.testing.assert_array_equal, *trees)


def test_bfloat16_rounds_floats_and_the_report_has_the_difference(latent, tmp_path):
    report = convert(latent, tmp_path / "packed", Conversion(form="packed", float_dtype="bfloat16"))
    assert report.weights.codes_differing == report.weights.scales_differing == 0
    assert 0 < report.logits.max_difference < 0.5


def test_latent_weights_of_a_packed_model_are_made_of_its_codes_and_scales(latent, tmp_path):
    convert(latent, tmp_path / "packed", Conversion(form="packed"))
    report = convert(tmp_path / "packed", tmp_path / "latent2", Conversion(form="latent"))
    assert report.weights.codes_differing == report.weights.scales_differing == report.logits.max_difference == 0
    (warning,) = report.warnings
    assert "its latent weights were made of codes and scales" in warning
    assert load_artifact(tmp_path / "latent2").kind == "latent"
    assert convert(latent, tmp_path / "latent3", Conversion(form="latent")).warnings == []


def test_the_int8_table_of_a_packed_model_has_no_latent_weights(tiny_config, tmp_path):
    config = dataclasses.replace(tiny_config, embedding="int8")
    params = jax.jit(init_params, static_argnums=0)(config, jax.random.key(0))
    export_artifact(tmp_path / "latent", config, params, "latent")
    convert(tmp_path / "latent", tmp_path / "packed", Conversion(form="packed"))
    with pytest.raises(ValueError, match="expected latent ones, which a packed model does not hold"):
        convert(tmp_path / "packed", tmp_path / "latent2", Conversion(form="latent"))
    assert not (tmp_path / "latent2").exists()


def test_a_code_that_differs_fails_the_conversion_and_leaves_nothing(latent, tmp_path, monkeypatch):
    honest = jaxlm.conversion.convert.stored_tensor_reader

    def lying(*args):
        read = honest(*args)

        def one_code_off(name):
            array = read(name)
            if name == "model.layers.1.mlp.up_proj.weight":
                code = array[0, 0] % 4  # of row 0, in the two lowest bits
                array[0, 0] = int(array[0, 0]) + (1 if code < 2 else -2)  # another of the three codes
            return array

        return one_code_off

    monkeypatch.setattr(jaxlm.conversion.convert, "stored_tensor_reader", lying)
    with pytest.raises(ValueError, match=r"not written: .* 1 codes and 0 scales differ from the source"):
        convert(latent, tmp_path / "packed", Conversion(form="packed"))
    assert not (tmp_path / "packed").exists()


def test_a_dense_model_has_nothing_to_pack(tiny_config, tmp_path):
    config = dataclasses.replace(tiny_config, linear="dense")
    params = jax.jit(init_params, static_argnums=0)(config, jax.random.key(0))
    export_artifact(tmp_path / "dense", config, params, "latent")
    with pytest.raises(ValueError, match="found a dense model, which has nothing to pack"):
        convert(tmp_path / "dense", tmp_path / "packed", Conversion(form="packed"))


@pytest.fixture
def wide(tiny_config, tmp_path, tokenizer):
    """Return a latent artifact that is wide enough for llama.cpp's ternary blocks."""
    config = dataclasses.replace(tiny_config, hidden_size=256, intermediate_size=256, head_dim=64, sub_norm=True)
    (tmp_path / "tokenizer").mkdir()
    tokenizer.save(tmp_path / "tokenizer")
    params = jax.jit(init_params, static_argnums=0)(config, jax.random.key(0))
    export_artifact(tmp_path / "wide", config, params, "latent", tokenizer_dir=tmp_path / "tokenizer")
    return tmp_path / "wide"


@pytest.mark.parametrize("ternary_type", ["TQ1_0", "TQ2_0"])
def test_ternary_to_gguf_and_back_has_the_same_codes_and_logits(wide, tmp_path, tokenizer, ternary_type):
    there = tmp_path / "there.gguf"

    def other(directory, token_ids):
        raise AssertionError("no program that runs directories is asked about a GGUF")

    report = convert(wide, there, Conversion(form="gguf", ternary_type=ternary_type), other)
    assert report.weights.scales_differing == 0 and report.logits.max_difference == 0.0
    assert json.loads(report_path(there, "gguf").read_text())["bytes_found"] == report.bytes_found
    convert(there, tmp_path / "back", Conversion(form="packed"))
    convert(wide, tmp_path / "packed", Conversion(form="packed"))
    packed, back = (load_artifact(tmp_path / name).tensors for name in ("packed", "back"))
    for name in packed:
        np.testing.assert_array_equal(packed[name], back[name])
    _, _, loaded = load_model(there)
    assert loaded is not None and loaded.encode("x = [1, 2]") == tokenizer.encode("x = [1, 2]")


def test_latent_floats_to_mlx_and_gguf_and_back_are_equal_to_the_bit(tiny_config, tmp_path):
    config = dataclasses.replace(tiny_config, linear="dense", sub_norm=False)
    params = jax.jit(init_params, static_argnums=0)(config, jax.random.key(0))
    export_artifact(tmp_path / "dense", config, params, "latent")
    for form, there in (("mlx", tmp_path / "there"), ("gguf", tmp_path / "there.gguf")):
        report = convert(tmp_path / "dense", there, Conversion(form=form))
        assert report.weights.floats == parameter_count(config) and report.weights.floats_differing == 0
        convert(there, tmp_path / f"back-{form}", Conversion(form="latent"))
        _, back, _ = load_model(tmp_path / f"back-{form}")
        jax.tree.map(np.testing.assert_array_equal, back, params)


def test_an_mlx_directory_holds_the_model_file_and_the_same_codes(latent, tmp_path):
    report = convert(latent, tmp_path / "mlx", Conversion(form="mlx", model_file="# the model"))
    assert report.logits.max_difference == 0.0
    assert (tmp_path / "mlx" / "model.py").read_text() == "# the model"


def test_logits_of_another_program_go_into_the_report_and_can_fail_the_conversion(latent, tmp_path):
    def other(directory, token_ids):
        model, params, _ = load_model(directory, verify=False)  # not sealed yet
        return "another", np.asarray(model.apply({"params": params}, token_ids)) + 1

    report = convert(latent, tmp_path / "packed", Conversion(form="packed"), other)
    assert report.logits_by == "another" and report.logits.mean_difference == pytest.approx(1, rel=1e-3)
    with pytest.raises(ValueError, match=r"logits by another differ by 1\.00e\+00 on average, expected at most 1\.0"):
        convert(latent, tmp_path / "again", Conversion(form="packed", logits_tolerance=1e-3), other)
    assert not (tmp_path / "again").exists()


def test_a_gguf_that_is_not_the_model_is_removed(wide, tmp_path, monkeypatch):
    monkeypatch.setattr(jaxlm.conversion.convert, "FLOAT16_ROUNDING", -1.0)
    with pytest.raises(ValueError, match="not written"):
        convert(wide, tmp_path / "there.gguf", Conversion(form="gguf"))
    assert not [path for path in tmp_path.iterdir() if "there" in path.name]


def test_a_gguf_has_its_name_when_it_is_compared_and_not_before(wide, tmp_path, monkeypatch):
    there, compare = tmp_path / "there.gguf", jaxlm.conversion.convert.compare_weights
    # What a killed conversion left there.
    for name in (".there.gguf.unverified", "..there.gguf.unverified.abc", ".there.gguf.unverified.conversion.json"):
        (tmp_path / name).write_text("begun")

    def compare_before(*arguments):
        assert not there.exists() and not report_path(there, "gguf").exists()
        return compare(*arguments)

    monkeypatch.setattr(jaxlm.conversion.convert, "compare_weights", compare_before)
    convert(wide, there, Conversion(form="gguf"))
    names = {path.name for path in tmp_path.iterdir() if "there" in path.name}
    assert names == {"there.gguf", "there.conversion.json"}
    with pytest.raises(ValueError, match=r"there\.gguf: already exists"):
        convert(wide, there, Conversion(form="gguf"))
    assert there.exists()


def test_two_conversions_to_one_gguf_at_once_leave_the_first(wide, tmp_path, monkeypatch):
    there, compare = tmp_path / "there.gguf", jaxlm.conversion.convert.compare_weights

    def second(*arguments):
        monkeypatch.setattr(jaxlm.conversion.convert, "compare_weights", compare)
        with pytest.raises(ValueError, match=r"there\.gguf: another process is writing it"):
            convert(wide, there, Conversion(form="gguf"))
        return compare(*arguments)

    monkeypatch.setattr(jaxlm.conversion.convert, "compare_weights", second)
    convert(wide, there, Conversion(form="gguf"))
    assert {path.name for path in tmp_path.iterdir() if "there" in path.name} == {"there.gguf", "there.conversion.json"}


def test_the_logits_of_a_plain_llama_for_mlx_are_those_of_mlx_lm(tiny_config, tmp_path):
    config = dataclasses.replace(tiny_config, linear="dense", sub_norm=False)
    params = jax.jit(init_params, static_argnums=0)(config, jax.random.key(0))
    export_artifact(tmp_path / "dense", config, params, "latent")
    report = convert(tmp_path / "dense", tmp_path / "mlx", Conversion(form="mlx"), other_program("mlx"))
    assert report.logits_by == "mlx-lm" and report.logits.mean_difference < 1e-4


@pytest.mark.parametrize(
    ("conversion", "message"),
    [
        (Conversion(form="packed", float_dtype="float16"), "float_dtype: found 'float16', which only a GGUF"),
        (Conversion(form="gguf"), "expected a multiple of 64"),
    ],
)
def test_a_model_that_a_form_cannot_hold_is_refused(latent, tmp_path, conversion, message):
    with pytest.raises(ValueError, match=message):
        convert(latent, tmp_path / "there", conversion)
    assert not (tmp_path / "there").exists()


def test_a_path_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no such file or directory"):
        convert(tmp_path / "missing", tmp_path / "packed", Conversion(form="packed"))
    with pytest.raises(ValueError, match=r"found no config\.json, expected a model directory"):
        convert(tmp_path, tmp_path / "packed", Conversion(form="packed"))
