import json
import time

import numpy as np
import pytest

from jaxlm.common.architecture.parameters import StoredTensor
from jaxlm.common.artifact.model_files import GENERATION_CONFIG, INDEX, open_tensors, write_model_files
from jaxlm.common.artifact.safetensors import TensorFile, write_tensors

TENSORS = [StoredTensor(name, (4,), "float32") for name in ("first", "second", "third")]
FIRST = "model-00001-of-00003.safetensors"


def read(name: str) -> np.ndarray:
    return np.full(4, len(name), np.float32)


@pytest.fixture
def directory(tmp_path):
    """Write one tensor per file."""
    write_model_files(tmp_path, {"model_type": "llama"}, TENSORS, read, max_file_bytes=16)
    return tmp_path


def change_index(directory, **weight_map):
    index = json.loads((directory / INDEX).read_text())
    index["weight_map"] |= weight_map
    (directory / INDEX).write_text(json.dumps(index))


def test_tensors_are_found_in_the_files_of_the_index(directory):
    tensors = open_tensors(directory)
    assert list(tensors) == ["first", "second", "third"]
    for tensor in TENSORS:
        assert tensors.stored()[tensor.name] == tensor
        np.testing.assert_array_equal(tensors[tensor.name], read(tensor.name))


def test_opening_reads_no_tensor(directory, monkeypatch):
    monkeypatch.setattr(TensorFile, "raw", lambda file, name: pytest.fail(f"{name} was read"))
    tensors = open_tensors(directory)
    assert "first" in tensors and "fourth" not in tensors


@pytest.mark.parametrize("name", ["../x.safetensors", "/x.safetensors", "..\\x.safetensors", "a/b"])
def test_an_index_cannot_lead_outside(directory, name):
    change_index(directory, first=name)
    with pytest.raises(ValueError, match=r"index\.json: file name .* leads outside the directory"):
        open_tensors(directory)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"first": "model-00004-of-00003.safetensors"}, "00004-of-00003.safetensors: missing, but named in"),
        ({"first": "model.bin"}, "model.bin: found a pickle, which can run any program"),
        ({"first": "model.npz"}, "names the file 'model.npz', expected .safetensors"),
        ({"first": ".."}, "names the file '..', expected .safetensors"),
        ({"first": 1}, "expected JSON with a 'weight_map' of tensor names to files"),
        ({"fourth": FIRST}, f"tensor fourth is not in {FIRST}, which it names"),
    ],
)
def test_an_index_that_is_wrong_is_refused(directory, weight_map, message):
    change_index(directory, **weight_map)
    with pytest.raises(ValueError) as error:
        open_tensors(directory)
    assert message in str(error.value)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": []}'])
def test_an_index_that_is_none_is_refused(directory, content):
    (directory / INDEX).write_text(content)
    with pytest.raises(ValueError, match=INDEX):
        open_tensors(directory)


def test_a_tensor_that_is_there_twice_is_refused(directory):
    (directory / FIRST).unlink()
    write_tensors(directory / FIRST, TENSORS[:2], read)
    with pytest.raises(ValueError, match="tensor second is in two files"):
        open_tensors(directory)


def test_a_directory_without_tensors_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"found neither model\.safetensors nor model\.safetensors\.index\.json"):
        open_tensors(tmp_path)


def test_special_ids_are_written_for_generation(tmp_path):
    content = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
    write_model_files(tmp_path, content, TENSORS, read)
    assert json.loads((tmp_path / GENERATION_CONFIG).read_text()) == {"bos_token_id": 1, "eos_token_id": 2}


def test_a_generation_config_that_came_with_the_tokenizer_is_kept(tmp_path):
    source, model = tmp_path / "source", tmp_path / "model"
    source.mkdir()
    model.mkdir()
    (source / GENERATION_CONFIG).write_text('{"eos_token_id": [2, 5]}')
    write_model_files(model, {"eos_token_id": 2}, TENSORS, read, tokenizer_dir=source)
    assert (model / GENERATION_CONFIG).read_text() == '{"eos_token_id": [2, 5]}'


def test_a_file_of_many_names_is_read_at_once(tmp_path):
    entry = '{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    header = ("{" + ",".join(f'"t{i}":{entry}' for i in range(30_000)) + "}").encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    begun = time.process_time()
    assert len(TensorFile(path)) == 30_000
    assert time.process_time() - begun < 5
    header = header.replace(b'"t7":', b'"t8":', 1)
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match=r"found tensor t8 twice|not a complete safetensors file"):
        TensorFile(path)
