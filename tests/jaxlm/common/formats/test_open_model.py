import json

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
