import dataclasses
import json
from itertools import product

import numpy as np
import pytest

from jaxlm.common.architecture.packing import pack
from jaxlm.common.architecture.parameters import stored_tensors
from jaxlm.common.architecture.ternary import round_to
from jaxlm.common.artifact.artifact import load_artifact
from jaxlm.common.artifact.safetensors import TensorFile, write_tensors
from jaxlm.common.formats.mlx import MODEL_FILE, needs_model_file, open_mlx, write_mlx
from jaxlm.common.formats.open_model import open_model
from shared_tokenizer.manifest import DamagedError, sealed_directory, verify_manifest
from tests.conftest import VARIANTS, YARN

PLAIN = {"linear": "dense", "sub_norm": False, "eos_id": 3}
FORMS = ("packed", "float")
# The models of the tests: every variant, padded rows, and a Llama that needs no model file.
CONFIGS = VARIANTS | {"padded": {"intermediate_size": 60}, "plain": PLAIN}
UNPACKED = [
    (name, "packed") for name, changes in CONFIGS.items() if changes.get("linear") == "dense"
]  # nothing to pack


def stored_values(config, kind):
    """Return random tensors of an artifact by stored name."""
    rng = np.random.default_rng(0)
    values = {}
    for tensor in stored_tensors(config, kind):
        if tensor.dtype == "uint8":
            rows = tensor.shape[0] * 4
            values[tensor.name] = pack(rng.integers(-1, 2, (rows, tensor.shape[1])).astype(np.int8))
        elif tensor.dtype == "int8":
            values[tensor.name] = rng.integers(-127, 128, tensor.shape).astype(np.int8)
        else:
            value = np.abs(rng.standard_normal(tensor.shape)).astype(np.float32)
            values[tensor.name] = round_to("bfloat16", value, np) if tensor.dtype == "bfloat16" else value
    return values


def write(directory, config, values, form, **options):
    model_file = "raise SystemExit('run')\n" if needs_model_file(config) else None
    with sealed_directory(directory) as temporary:
        write_mlx(temporary, config, values.__getitem__, form=form, model_file=model_file, **options)
    return directory


def assert_same(artifact, config, kind, values):
    assert (artifact.config, artifact.kind) == (config, kind)
    assert list(artifact.tensors) == [tensor.name for tensor in stored_tensors(config, kind)]
    for name, value in values.items():
        found = artifact.tensors[name]
        assert found.dtype == value.dtype, name
        np.testing.assert_array_equal(found, value, err_msg=name)


@pytest.mark.parametrize(("variant", "form"), [case for case in product(CONFIGS, FORMS) if case not in UNPACKED])
def test_a_written_directory_is_read_back_to_the_bit(tmp_path, tiny_config, variant, form):
    config = dataclasses.replace(tiny_config, **CONFIGS[variant])
    kind = "packed" if form == "packed" else "latent"
    values = stored_values(config, kind)
    assert_same(open_mlx(write(tmp_path / "mlx", config, values, form)), config, kind, values)


def test_floats_may_be_rounded(tmp_path, tiny_config):
    values = stored_values(tiny_config, "packed")
    artifact = open_mlx(write(tmp_path / "mlx", tiny_config, values, "packed", float_dtype="bfloat16"))
    assert artifact.float_dtype == "bfloat16"
    expected = {name: round_to("bfloat16", v, np) if v.dtype == np.float32 else v for name, v in values.items()}
    assert_same(artifact, tiny_config, "packed", expected)


def test_a_packed_weight_costs_two_bits(tmp_path, tiny_config):
    directory = write(tmp_path / "mlx", tiny_config, stored_values(tiny_config, "packed"), "packed")
    found = {tensor.name: tensor for tensor in open_mlx(directory).stored}
    weight = found["layers.0.mlp.down_proj.weight"]
    assert (weight.dtype, weight.nbytes) == ("uint32", 32 * 64 // 4)


def test_a_plain_llama_is_an_artifact_with_generation_config(tmp_path, tiny_config):
    config = dataclasses.replace(tiny_config, **PLAIN)
    values = stored_values(config, "latent")
    directory = write(tmp_path / "mlx", config, values, "float")
    assert json.loads((directory / "generation_config.json").read_text()) == {"eos_token_id": 3}
    assert not (directory / MODEL_FILE).exists()
    assert_same(load_artifact(directory), config, "latent", values)


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        (PLAIN, False),
        (PLAIN | {"activation": "gelu"}, True),  # mlx-lm's Llama ignores hidden_act
        (PLAIN | {"linear": "ternary"}, True),
        (PLAIN | {"sub_norm": True}, True),
        (PLAIN | {"embedding": "int8"}, True),
        (PLAIN | {"qk_norm": True, "rope_scaling": YARN}, False),
        (PLAIN | {"attention_bias": True}, False),
        (PLAIN | {"attention_bias": True, "qk_norm": True}, True),
        # mlx-lm ignores these keys of YaRN.
        (PLAIN | {"rope_scaling": dataclasses.replace(YARN, attention_factor=1.0)}, True),
        (PLAIN | {"rope_scaling": dataclasses.replace(YARN, truncate=False)}, True),
    ],
)
def test_all_but_a_model_of_mlx_lm_needs_a_model_file(tiny_config, changes, needed):
    assert needs_model_file(dataclasses.replace(tiny_config, **changes)) == needed


def test_a_tokenizer_comes_along_and_its_generation_config_stays(tmp_path, tiny_config):
    source = tmp_path / "tokenizer"
    source.mkdir()
    (source / "tokenizer.json").write_text("{}")
    (source / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    values = stored_values(tiny_config, "packed")
    directory = write(tmp_path / "mlx", tiny_config, values, "packed", tokenizer_dir=source)
    assert (directory / "tokenizer.json").read_text() == "{}"
    assert json.loads((directory / "generation_config.json").read_text()) == {"eos_token_id": [2, 7]}


def test_a_form_that_does_not_fit_is_refused(tmp_path, tiny_config):
    plain = dataclasses.replace(tiny_config, **PLAIN)
    with pytest.raises(ValueError, match="a dense model, which has nothing to pack"):
        write_mlx(tmp_path, plain, {}.__getitem__, form="packed")
    with pytest.raises(ValueError, match="found one, expected none"):
        write_mlx(tmp_path, plain, {}.__getitem__, form="float", model_file="")
    with pytest.raises(ValueError, match="found none, expected the text of one"):
        write_mlx(tmp_path, tiny_config, {}.__getitem__, form="packed")
    assert not any(tmp_path.iterdir())


def resaved(directory, config_changes=None, tensor_changes=None):
    """Change a directory as another program does when it saves, without a manifest."""
    (directory / "MANIFEST.sha256").unlink()
    content = json.loads((directory / "config.json").read_text()) | (config_changes or {})
    (directory / "config.json").write_text(json.dumps(dict(sorted(content.items()))))
    file = TensorFile(directory / "model.safetensors")
    stored, values = {name: file.stored(name) for name in file}, {name: np.array(file[name]) for name in file}
    for name, value in (tensor_changes or {}).items():
        values[name] = value
        stored[name] = dataclasses.replace(stored[name], shape=value.shape, dtype=str(value.dtype))
    (directory / "model.safetensors").unlink()
    write_tensors(directory / "model.safetensors", list(stored.values()), values.__getitem__)
    return directory


def test_a_directory_that_mlx_lm_saved_is_read(tmp_path, tiny_config):
    config = dataclasses.replace(tiny_config, **PLAIN)
    values = stored_values(config, "latent")
    directory = resaved(write(tmp_path / "mlx", config, values, "float"), {"eos_token_id": [3, 5]})
    assert_same(open_mlx(directory), config, "latent", values)


WEIGHT = "layers.0.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("config_changes", "tensor_changes", "message"),
    [
        ({"model_file": "../../other.py"}, {}, r"model_file: found '../../other.py', expected 'model.py'"),
        ({"jaxlm": None}, {}, "was not written by jaxlm"),
        ({"quantization": {"bits": 4}}, {}, r"quantization: found .*; undo the quantization of mlx-lm"),
        ({"attention_bias": True}, {}, "unknown key 'attention_bias' with value True"),
        ({"eos_token_id": []}, {}, r"eos_id: found \[\]"),
        ({}, {WEIGHT: np.zeros((32, 3), np.uint32)}, r"down_proj.weight: found uint32 \[32, 3\], expected uint32"),
        ({}, {WEIGHT + "_scale": np.ones(2, np.float32)}, r"weight_scale: found float32 \[2\], expected float32 \[1\]"),
        ({}, {WEIGHT: np.full((32, 4), 3, np.uint32)}, f"{WEIGHT}: .*code of value 3"),
    ],
)
def test_an_error_names_the_key_or_the_tensor(tmp_path, tiny_config, config_changes, tensor_changes, message):
    directory = write(tmp_path / "mlx", tiny_config, stored_values(tiny_config, "packed"), "packed")
    resaved(directory, config_changes, tensor_changes)
    with pytest.raises(ValueError, match=message):
        dict(open_mlx(directory).tensors)


def test_a_directory_that_holds_no_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"found no config.json"):
        open_mlx(tmp_path)
    (tmp_path / "config.json").write_text("[" * 10**5)
    with pytest.raises(ValueError, match="not JSON"):
        open_mlx(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="expected an object"):
        open_mlx(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="was not written by jaxlm"):
        open_mlx(tmp_path)


@pytest.mark.parametrize(("changes", "message"), [(PLAIN, "unknown key"), ({}, "missing key")])
def test_a_model_file_is_named_just_where_it_is_needed(tmp_path, tiny_config, changes, message):
    config = dataclasses.replace(tiny_config, **changes)
    directory = write(tmp_path / "mlx", config, stored_values(config, "latent"), "float")
    content = json.loads((directory / "config.json").read_text())
    if content.pop("model_file", None) is None:
        content["model_file"] = MODEL_FILE
    (directory / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"{message} 'model_file'"):
        open_mlx(directory)


def test_a_damaged_directory_is_found_and_pythons_cache_is_no_damage(tmp_path, tiny_config):
    directory = write(tmp_path / "mlx", tiny_config, stored_values(tiny_config, "packed"), "packed")
    (directory / "__pycache__").mkdir()
    (directory / "__pycache__" / "model.cpython-311.pyc").write_bytes(b"")
    verify_manifest(directory)
    (directory / MODEL_FILE).write_text("")
    with pytest.raises(DamagedError, match=r"model\.py: damaged"):
        open_model(directory)
    open_model(directory, verify=False)
