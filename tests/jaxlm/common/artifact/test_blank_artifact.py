import shutil
import tracemalloc

import numpy as np
import pytest

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.initial_weights import initial_weights
from jaxlm.common.architecture.model_size import config_of_size
from jaxlm.common.architecture.parameters import parameter_count, stored_tensors, tensor_bytes
from jaxlm.common.artifact import safetensors as tensor_file
from jaxlm.common.artifact.artifact import load_artifact, weight_file_bytes
from jaxlm.common.artifact.blank_artifact import save_blank_artifact
from jaxlm.common.artifact.model_files import MAX_FILE_BYTES


@pytest.mark.parametrize("float_dtype", ["float32", "bfloat16"])
def test_a_blank_artifact_holds_the_initial_weights(tmp_path, tiny_config, float_dtype):
    written = []
    save_blank_artifact(tmp_path / "blank", tiny_config, seed=3, float_dtype=float_dtype, advance=written.append)
    artifact = load_artifact(tmp_path / "blank")
    assert (artifact.config, artifact.kind, artifact.float_dtype) == (tiny_config, "latent", float_dtype)
    assert sum(written) == parameter_count(tiny_config)
    read = initial_weights(tiny_config, 3)
    for name, found in artifact.tensors.items():
        np.testing.assert_allclose(found, read(name), rtol=0 if float_dtype == "float32" else 2**-8)


def test_the_size_of_the_files_is_predicted(tmp_path, tiny_config):
    for float_dtype in ("float32", "bfloat16"):
        save_blank_artifact(tmp_path / float_dtype, tiny_config, float_dtype=float_dtype)
        found = (tmp_path / float_dtype / "model.safetensors").stat().st_size
        assert found == weight_file_bytes(tiny_config, "latent", float_dtype)


def test_a_model_of_many_files_is_predicted_without_making_it():
    config = config_of_size(10**10, "ternary")
    headers = weight_file_bytes(config, "latent") - tensor_bytes(config, "latent")
    files = tensor_bytes(config, "latent") / MAX_FILE_BYTES
    assert (
        60 * len(stored_tensors(config, "latent")) + 8 * files < headers < 200 * len(stored_tensors(config, "latent"))
    )


def test_one_tensor_is_in_memory_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_file, "_CHUNK", 2**14)
    config = ModelConfig(
        vocab_size=256, hidden_size=256, intermediate_size=4096, num_layers=2, num_heads=4, num_kv_heads=2
    )
    largest = 4 * 256 * 4096
    tracemalloc.start()
    try:
        save_blank_artifact(tmp_path / "blank", config, float_dtype="bfloat16")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert tensor_bytes(config, "latent") > 6 * largest
    assert largest <= peak < 1.25 * largest


def test_a_disk_without_room_is_refused(tmp_path, tiny_config, monkeypatch):
    found = shutil.disk_usage(tmp_path)
    needed = weight_file_bytes(tiny_config, "latent") + 10**6
    monkeypatch.setattr(shutil, "disk_usage", lambda path: found._replace(free=needed - 1))
    with pytest.raises(ValueError, match=f"found {needed - 1:,} bytes free, expected at least {needed:,}"):
        save_blank_artifact(tmp_path / "deep" / "blank", tiny_config)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: found._replace(free=needed))
    save_blank_artifact(tmp_path / "deep" / "blank", tiny_config)


def test_a_taken_directory_and_a_wrong_seed_are_refused(tmp_path, tiny_config):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    with pytest.raises(ValueError, match="taken: already exists and is not empty"):
        save_blank_artifact(tmp_path / "taken", tiny_config)
    for seed in (-1, 2**31):
        with pytest.raises(ValueError, match=f"seed: found {seed}, expected 0 or more"):
            save_blank_artifact(tmp_path / "blank", tiny_config, seed=seed)
    assert [path.name for path in tmp_path.rglob("*")] == ["taken", "file"]
