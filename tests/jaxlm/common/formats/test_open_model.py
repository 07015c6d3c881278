import json
from pathlib import Path

import numpy as np
import pytest

from jaxlm.common.architecture.parameters import stored_tensors
from jaxlm.common.artifact.artifact import save_artifact
from jaxlm.common.artifact.model_files import CONFIG
from jaxlm.common.formats.dequantized import write_dequantized
from jaxlm.common.formats.open_model import open_model
from shared_tokenizer.manifest import MANIFEST, DamagedError, write_manifest


@pytest.fixture
def read(tiny_config):
    """Return a reader of packed tensors whose weights are all zero."""
    packed = {tensor.name: tensor for tensor in stored_tensors(tiny_config, "packed")}

    def zeros(name):
        if packed[name].dtype == "uint8":
            return np.full(packed[name].shape, 0b01010101, np.uint8)
        return np.ones(packed[name].shape, np.float32)

    return zeros


@pytest.fixture
def artifact(tmp_path, tiny_config, read):
    save_artifact(tmp_path / "artifact", tiny_config, "packed", read)
    return tmp_path / "artifact"


@pytest.fixture
def foreign(tmp_path, tiny_config, read):
    (tmp_path / "foreign").mkdir()
    write_dequantized(tmp_path / "foreign", tiny_config, read)
    return tmp_path / "foreign"


def test_an_artifact_and_a_directory_from_elsewhere_are_told_apart(artifact, foreign, tiny_config):
    assert open_model(artifact).config == tiny_config
    assert open_model(foreign).config.linear == "dense"


def test_an_artifact_needs_its_manifest_and_no_other_does(artifact):
    (artifact / MANIFEST).unlink()
    with pytest.raises(DamagedError, match=r"found no MANIFEST\.sha256"):
        open_model(artifact)
    assert open_model(artifact, verify=False).kind == "packed"


@pytest.mark.parametrize("content", ["{}", "[]", "not JSON"])
def test_a_manifest_is_checked_before_the_config_is_believed(foreign, content):
    write_manifest(foreign)
    open_model(foreign)
    (foreign / CONFIG).write_text(content)
    with pytest.raises(DamagedError, match=r"config\.json: damaged"):
        open_model(foreign)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "config.json: found a JSON list, expected an object"),
        ("[" * 100_000, "config.json: not JSON"),
        ("{}", "config.json: model_type: found None"),
        (json.dumps({"jaxlm": {}}), "found format_version None, expected 1"),
    ],
)
def test_a_config_that_is_none_is_refused(foreign, content, message):
    (foreign / CONFIG).write_text(content)
    with pytest.raises(ValueError) as error:
        open_model(foreign, verify=False)
    assert message in str(error.value)


def test_a_path_without_a_model_is_refused(tmp_path, artifact):
    with pytest.raises(ValueError, match="nowhere: no such file or directory, expected a model"):
        open_model(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"found no config\.json, .*; its artifact is .*artifact"):
        open_model(tmp_path)
    with pytest.raises(ValueError, match=r"model\.safetensors: found a file, expected a model directory"):
        open_model(artifact / "model.safetensors")


@pytest.mark.parametrize("name", ["model.pt", "pytorch_model.bin"])
def test_a_pickle_is_refused_with_the_reason(foreign, name):
    (foreign / "model.safetensors").rename(foreign / name)
    for path in (foreign, foreign / name):
        with pytest.raises(ValueError, match=rf"{name}: found a pickle, which can run any program when it is read"):
            open_model(path)


def _write(path: Path, **files: str) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (path / name.replace("__", ".")).write_text(content)
    return path


GUESSES = {
    "PEFT": (
        {"adapter_config__json": '{"peft_type": "LORA", "base_model_name_or_path": "b"}'},
        "adapters of PEFT for b",
    ),
    "adapters": ({"adapter_config__json": "{}"}, "name the model that they were trained on, .* --adapter_path"),
    "a run": ({"config__yaml": ""}, "it is a run without an artifact: finish it with --resume, or .*jaxlm convert"),
    "fine-tuning": ({"finetune__yaml": ""}, "its adapters are .*adapters"),
    "shards": ({"manifest__json": "{}", "train__npy": ""}, "token shards, which are named with --data_dir"),
    "GGUF": ({"model__gguf": ""}, r"name the GGUF file in it: .*model\.gguf"),
    "ONNX": ({"model__onnx": ""}, "an ONNX model"),
    "weights": ({"model__safetensors": ""}, r"copy their config\.json next to them"),
    "pickle": ({"pytorch_model__bin": ""}, r"pytorch_model\.bin: found a pickle"),
    "tokenizer": ({"tokenizer__json": "{}"}, "it holds a tokenizer alone"),
    "empty": ({}, "it is empty"),
}


@pytest.mark.parametrize("what", GUESSES)
def test_a_directory_that_is_something_else_is_named(tmp_path, what):
    files, message = GUESSES[what]
    with pytest.raises(ValueError, match=rf"found no config\.json, expected a model directory; .*{message}"):
        open_model(_write(tmp_path / "it", **files))


def test_of_a_folder_of_runs_the_runs_are_named(tmp_path):
    for name in ("first", "second"):
        _write(tmp_path / "runs" / name, config__yaml="")
    with pytest.raises(ValueError, match=r"a folder of runs or models, name one of them: .*first") as error:
        open_model(tmp_path / "runs")
    assert str(tmp_path / "runs" / "second") in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_config": {}}, "a model of text and images"),
        ({"quantization": {"bits": 4, "mode": "mxfp4"}}, "mode: found 'mxfp4', expected 'affine'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quant_method: found 'gptq', expected 'bitnet' or none"),
        ({"quantization_config": {"quant_method": "awq"}}, "found 'awq'"),
        (
            {"model_type": "qwen3_moe", "num_experts": 64},
            r"found a mixture of experts \(model_type 'qwen3_moe', num_experts 64\), expected a dense or ternary",
        ),
        ({"model_type": "mixtral", "num_local_experts": 8}, "found a mixture of experts"),
        ({"layer_types": ["linear_attention", "full_attention"]}, "found a hybrid with layers of linear_attention"),
        ({"model_type": "jamba", "attn_layer_period": 8}, "found a hybrid or recurrent model"),
    ],
)
def test_a_model_in_a_form_that_is_not_read_is_named(foreign, change, message):
    content = json.loads((foreign / CONFIG).read_text())
    (foreign / CONFIG).write_text(json.dumps(content | change))
    with pytest.raises(ValueError, match=message):
        open_model(foreign)


@pytest.mark.parametrize("settings", ["config.yaml", "finetune.yaml"])
def test_of_a_run_the_artifact_is_taken(tmp_path, artifact, settings):
    (tmp_path / "run").mkdir()
    artifact.rename(tmp_path / "run" / "artifact")
    (tmp_path / "run" / settings).write_text("model: {}")
    assert open_model(tmp_path / "run").config == open_model(tmp_path / "run" / "artifact").config


def test_an_artifact_that_transformers_saved_again_is_a_transformers_directory(artifact, capsys):
    (artifact / MANIFEST).unlink()
    with pytest.raises(ValueError, match="found no MANIFEST"):
        open_model(artifact)
    expected = dict(open_model(artifact, verify=False).tensors)
    content = json.loads((artifact / CONFIG).read_text())
    content |= {"transformers_version": "5.24.0", "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    (artifact / CONFIG).write_text(json.dumps(content))
    found = open_model(artifact)
    assert capsys.readouterr().err.count("transformers 5.24.0 has saved this model again, without MANIFEST") == 1
    assert found.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found.tensors[name], tensor)


def test_of_one_file_and_an_index_the_file_is_read_as_in_transformers(foreign, capsys):
    (foreign / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    open_model(foreign)
    (line,) = capsys.readouterr().err.splitlines()
    assert "its weights are ternary" in line  # and nothing about the files
    (foreign / "model-1.safetensors").write_bytes(b"")
    open_model(foreign)
    assert "read the weights of model.safetensors, as transformers does; not read: model-1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "names",
    [
        ["lm_head"],
        ["model.embed_tokens", "lm_head"],
        ["lm_head", "model.norm", "model.layers.0.input_layernorm"],
        ["embed_tokens"],
        [],
        None,
    ],
)
def test_modules_outside_the_blocks_may_be_listed_as_floats(foreign, names):
    content = json.loads((foreign / CONFIG).read_text())
    quantization = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
    (foreign / CONFIG).write_text(
        json.dumps(content | {"quantization_config": quantization | {"modules_to_not_convert": names}})
    )
    assert open_model(foreign).config.linear == "ternary"
    others = {"modules_to_not_convert": ["lm_head", "model.layers.0.mlp.up_proj"]}
    (foreign / CONFIG).write_text(json.dumps(content | {"quantization_config": quantization | others}))
    with pytest.raises(ValueError, match=r"modules_to_not_convert: found .*up_proj"):
        open_model(foreign)
